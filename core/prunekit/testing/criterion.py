"""What every criterion promises: how it answers the engine's one question, and the small methods behind it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from prunekit.errors import SpecError, UnsupportedError
from prunekit.observing.moment import Surroundings
from prunekit.plugins.build import component, estimators
from prunekit.pruning.asking import checked_masks
from prunekit.pruning.criterion import Criterion, old_form, refuse_non_finite
from prunekit.pruning.proposal import Proposal
from prunekit.pruning.sample import Sample
from prunekit.pruning.selector import Selector
from prunekit.pruning.sequential import Sequential
from prunekit.pruning.step import Pruner
from prunekit.seeds import generator
from prunekit.statistics.request import Estimates, Statistic
from prunekit.testing import component as common
from prunekit.testing.guard import elsewhere, failing, hooks, same, shares_memory, untouched
from prunekit.testing.situation import (
    DTYPES,
    LAMBDAS,
    ODD,
    SPARSITIES,
    Failing,
    Levels,
    Situation,
    Watched,
    batch,
    network,
    situation,
)
from prunekit.testing.verdict import Subject, demand, not_applicable

Under = Subject[Criterion]


# -- what it is -------------------------------------------------------------------------------------------------


def is_written_for_this_version(subject: Under) -> None:
    """Methods are methods, and nothing is defined that would never be called."""
    wrong = old_form(type(subject.component))
    demand(not wrong, wrong)


def required_statistics_exist(subject: Under) -> None:
    """For every λ, a frozenset of names and requests that some plugin supplies."""
    criterion = subject.component
    demand(isinstance(criterion.requires, frozenset), "requires must be a frozenset")
    for lam in LAMBDAS:
        required = criterion.required(lam)
        demand(isinstance(required, frozenset), "required(lam) must be a frozenset")
        for request in required:
            demand(isinstance(request, str | Statistic), f"{request!r} is neither a name nor a Statistic")
        demand(set(estimators(required, subject.manager)) == set(required), "a statistic cannot be built")


def damps_is_yes_or_no(subject: Under) -> None:
    """λ goes either into the damping or into the saliency."""
    damps = subject.component.damps
    demand(isinstance(damps, bool), f"damps must be True or False; it is {damps!r}")


# -- saliency ---------------------------------------------------------------------------------------------------


def saliency_has_the_weights_names_shapes_and_device(subject: Under) -> None:
    """One floating-point tensor per weight tensor."""
    for given in _situations(subject):
        saliencies = _saliency(subject.component, given)
        demand(
            set(saliencies) == set(given.weights),
            f"saliencies for {sorted(saliencies)}; there are {sorted(given.weights)}",
        )
        for name, w in given.weights.items():
            value = saliencies[name]
            demand(
                value.shape == w.shape,
                f"{name} has shape {tuple(w.shape)}, its saliency {tuple(value.shape)}",
            )
            demand(value.device == w.device, f"{name} is on {w.device}, its saliency on {value.device}")
            demand(value.is_floating_point(), f"the saliency of {name} is {value.dtype}")


def saliency_is_finite(subject: Under) -> None:
    """Wherever a weight is kept."""
    for given in _situations(subject):
        _finite(_saliency(subject.component, given), given)


def saliency_is_finite_where_a_whole_layer_is_zero(subject: Under) -> None:
    """Also with the statistics from before, so that a norm of the weights that is divided by is found."""
    for given in _situations(subject):
        first = next(iter(given.weights))
        given.weights[first].zero_()
        _finite(_saliency(subject.component, given), given)


def _finite(saliencies: Mapping[str, Tensor], given: Situation) -> None:
    for name, value in saliencies.items():
        kept = given.masks.get(name)
        if kept is not None and kept.shape == value.shape:
            value = value[kept]
        bad = int((~value.isfinite()).sum())
        demand(not bad, f"the saliency of {name} is not finite for {bad} of {value.numel()} kept weights")


def saliency_leaves_its_inputs_and_the_process_alone(subject: Under) -> None:
    """Weights and statistics are lent, and random numbers come in as a statistic."""
    for given in _situations(subject):
        with untouched(mappings=given.mappings()):
            _saliency(subject.component, given)


def saliency_leaves_its_inputs_and_the_process_alone_when_it_fails(subject: Under) -> None:
    """What was changed for a while would stay changed."""
    for given in _situations(subject):
        _saliency(subject.component, given)  # there is one
        with untouched(mappings=given.mappings()), failing():
            subject.component.saliency(Failing(given.weights), _failing(given.statistics))


def saliency_is_deterministic(subject: Under) -> None:
    """Called again with other global random states, the same to the last bit."""
    for given in _situations(subject):
        first = copy.deepcopy(_saliency(subject.component, given))
        with elsewhere():
            second = _saliency(subject.component, given)
        for name, value in first.items():
            demand(same(value, second[name]), f"{name}: differs when called again with another seed")


# -- the small methods, where they are defined ------------------------------------------------------------------


def predicted_delta_loss_is_a_finite_number_or_none(subject: Under) -> None:
    """And the same when asked again, with nothing changed."""
    _defines(subject, "predicted_delta_loss")
    for given in _situations(subject):
        with untouched(mappings=given.mappings()):
            prediction = _predicted(subject.component, given, given.proposed)
        if prediction is not None:
            demand(
                isinstance(prediction, float | int) and not isinstance(prediction, bool),
                f"is not a number but {prediction!r}",
            )
            demand(math.isfinite(prediction), f"is {prediction}")
        again = _predicted(subject.component, given, given.proposed)
        demand(same(again, prediction), f"is {prediction} and, asked again, {again}")


def predicted_delta_loss_of_no_change_is_zero(subject: Under) -> None:
    """Where no update changes the weights that stay."""
    _defines(subject, "predicted_delta_loss")
    for given in _situations(subject):
        criterion = subject.component
        if criterion.update(given.weights, given.statistics, given.masks) is not None:
            not_applicable("an update can change the surviving weights even if none goes")
        prediction = _predicted(criterion, given, given.masks)
        demand(prediction is None or abs(prediction) <= 1e-12, f"is {prediction} where no weight goes")


def update_gives_finite_values_for_the_surviving_weights(subject: Under) -> None:
    """In the weights' shapes, with nothing changed; what stands where a weight goes does not matter."""
    _defines(subject, "update")
    for given in _situations(subject):
        with untouched(mappings=given.mappings()):
            values = subject.component.update(given.weights, given.statistics, given.proposed) or {}
        _values_fit(values, given, given.proposed)


def update_is_deterministic(subject: Under) -> None:
    """Called again with other global random states, the same for every weight that stays."""
    _defines(subject, "update")
    for given in _situations(subject):
        first = copy.deepcopy(subject.component.update(given.weights, given.statistics, given.proposed) or {})
        with elsewhere():
            second = subject.component.update(given.weights, given.statistics, given.proposed) or {}
        demand(list(first) == list(second), "an update of other parameters when called again")
        for name, value in first.items():
            kept = given.proposed[name]
            demand(same(value[kept], second[name][kept]), f"{name}: differs when called again")


# -- the engine's question --------------------------------------------------------------------------------------


def proposed_masks_are_nested_and_spend_the_exact_budget(subject: Under) -> None:
    """For no more weights than are gone, one more, half of what is left, and all but one."""
    selector = _selector(subject)
    for given, budget, proposal in _answers(subject):
        checked_masks("", proposal.masks, given.context(budget, selector))


def proposed_values_are_finite_and_fit(subject: Under) -> None:
    """New values are of weights that there are, in their shapes, and finite where a weight stays."""
    for given, _, proposal in _answers(subject):
        _values_fit(proposal.values or {}, given, proposal.masks)


def proposals_own_their_memory(subject: Under) -> None:
    """Masks and values that lie in lent tensors would change with these."""
    for given, _, proposal in _answers(subject):
        for what, mapping in (("mask", proposal.masks), ("new value", proposal.values or {})):
            for name, tensor in mapping.items():
                demand(
                    not shares_memory(tensor, given.lent()),
                    f"the {what} of {name} is in memory that was lent; return a copy",
                )


def predictions_are_finite_numbers_and_fit_the_proposal(subject: Under) -> None:
    """A number or ``None``; what :meth:`predicted_delta_loss` says of these masks; nothing for no change."""
    criterion = subject.component
    for given, budget, proposal in _answers(subject):
        prediction = proposal.predicted_delta_loss
        if prediction is not None:
            demand(
                isinstance(prediction, float | int) and not isinstance(prediction, bool),
                f"the prediction is not a number but {prediction!r}",
            )
            demand(math.isfinite(prediction), f"the prediction is {prediction}")
            if budget == given.gone and not _changes(proposal, given):
                demand(abs(prediction) <= 1e-12, f"predicts a change by {prediction} where nothing changes")
        if type(criterion).predicted_delta_loss is Criterion.predicted_delta_loss:
            continue
        said = _predicted(criterion, given, proposal.masks)
        close = (
            said is None
            if prediction is None
            else said is not None and math.isclose(said, prediction, rel_tol=1e-4, abs_tol=1e-7)
        )
        demand(
            close, f"proposes a change by {prediction}, and predicted_delta_loss says {said} of these masks"
        )


def proposals_leave_their_inputs_and_the_process_alone(subject: Under) -> None:
    """Everything in the context is lent."""
    selector = _selector(subject)
    for given, budget in _questions(subject):
        with untouched(mappings=given.mappings()):
            _propose(subject.component, given, budget, selector)


def proposals_leave_their_inputs_and_the_process_alone_when_they_fail(subject: Under) -> None:
    """Also where a device runs out of memory in between."""
    selector = _selector(subject)
    for given, budget in _questions(subject):
        broken = _with(given, Failing(given.weights), _failing(given.statistics))
        with untouched(mappings=given.mappings()), failing():
            subject.component.propose(broken.context(budget, selector, broken.statistics))


def proposals_are_deterministic(subject: Under) -> None:
    """Asked again with other global random states, the same to the last bit."""
    selector = _selector(subject)
    for given, budget in _questions(subject):
        first = _parts(_propose(subject.component, given, budget, selector))
        with elsewhere():
            second = _parts(_propose(subject.component, given, budget, selector))
        _alike(first, second, "differs when asked again with another seed")


def the_engine_builds_the_same_criterion_from_the_options(subject: Under) -> None:
    """It does not call ``__init__``."""
    selector, criterion = _selector(subject), subject.component
    rebuilt = type(criterion).from_options(criterion.options)
    for given, budget in _questions(subject):
        demand(
            rebuilt.required(given.lam) == criterion.required(given.lam),
            "requires other statistics when built from its options",
        )
        first = _parts(_propose(criterion, given, budget, selector))
        second = _parts(_propose(rebuilt, given, budget, selector))
        _alike(first, second, "proposes something else when built from its options, without __init__")


def proposes_the_same_from_nothing_but_what_it_requires(subject: Under) -> None:
    """``requires`` is honest: no other statistic is read, even if it is there."""
    selector = _selector(subject)
    for given, budget in _questions(subject):
        expected = _parts(_propose(subject.component, given, budget, selector))
        more = Estimates(given.statistics)
        for request in ("gradient", "uniform", "ggn_diagonal"):  # what a criterion may come across
            if request not in given.statistics:
                more[request] = {k: torch.ones_like(w) for k, w in given.weights.items()}
        with_more = _parts(_propose(subject.component, _with(given, given.weights, more), budget, selector))
        _alike(
            expected, with_more, "proposes something else when there are statistics that it does not require"
        )


def reads_every_statistic_that_it_requires(subject: Under) -> None:
    """One that is never read costs a pass over the data for nothing."""
    selector, criterion = _selector(subject), subject.component
    unread = {lam: set(criterion.required(lam)) for lam in LAMBDAS}
    for given, budget in _questions(subject):
        watched = Watched(given.statistics)
        criterion.propose(given.context(budget, selector, watched))
        unread[given.lam] -= watched.read
    names = sorted({Statistic.of(request).name for left in unread.values() for request in left})
    demand(not names, f"requires {', '.join(names)} but never reads it")


def proposals_are_the_same_on_cuda(subject: Under) -> None:
    """To rounding; in float64."""
    if not torch.cuda.is_available():
        not_applicable("needs a CUDA device")
    selector, criterion = _selector(subject), subject.component
    here = situation(criterion.required(0.0), subject.manager, torch.float64, 0.4)
    there = here.to("cuda")
    budget = _budgets(subject, here)[-1]
    expected = _propose(criterion, here, budget, selector)
    on_cuda = _propose(criterion, there, budget, selector)
    for name, mask in expected.masks.items():
        demand(on_cuda.masks[name].device.type == "cuda", f"the mask of {name} is not on the weights' device")
        demand(torch.equal(on_cuda.masks[name].cpu(), mask), f"the mask of {name} differs on CUDA")
    for name, value in (expected.values or {}).items():
        kept = expected.masks[name]
        other = (on_cuda.values or {})[name].cpu()
        demand(
            torch.allclose(other[kept], value[kept], rtol=1e-6, atol=1e-9), f"{name}: other values on CUDA"
        )


# -- at the edges -----------------------------------------------------------------------------------------------


def copes_with_a_layer_without_weights(subject: Under) -> None:
    """As an unused head has, or a layer of width zero."""
    _copes(subject, ODD[0])


def copes_with_a_layer_of_one_weight(subject: Under) -> None:
    """And budgets that leave it, or take it."""
    _copes(subject, ODD[1])


def copes_with_weights_that_are_all_equal(subject: Under) -> None:
    """So that saliencies tie, and units are copies of each other."""
    _copes(subject, ODD[2])


def copes_with_a_layer_that_is_all_zero(subject: Under) -> None:
    """Whose weights are kept all the same."""
    _copes(subject, ODD[3])


def copes_with_a_layer_that_is_gone(subject: Under) -> None:
    """Pruned to the last weight, so that nothing gets through."""
    _copes(subject, ODD[4])


def _copes(subject: Under, case: str) -> None:
    selector, criterion = _selector(subject), subject.component
    for lam in LAMBDAS:
        for dtype in DTYPES:
            try:
                given = situation(criterion.required(lam), subject.manager, dtype, 0.0, lam, case)
            except UnsupportedError as error:
                not_applicable(f"its statistics refuse {case}: {error}")
            for budget in _budgets(subject, given):
                proposal = _propose(criterion, given, budget, selector)
                checked_masks("", proposal.masks, given.context(budget, selector))
                _values_fit(proposal.values or {}, given, proposal.masks)
                prediction = proposal.predicted_delta_loss
                demand(prediction is None or math.isfinite(prediction), f"{case}: predicts {prediction}")


# -- all of it --------------------------------------------------------------------------------------------------


def prunes_a_network_and_leaves_the_rest_of_it_alone(subject: Under) -> None:
    """As the engine does, in two steps."""
    for dtype in DTYPES:
        _prunes(subject, dtype)


def _prunes(subject: Under, dtype: torch.dtype) -> None:
    model, data = network(dtype), batch(dtype)
    before = copy.deepcopy(model.state_dict())
    pruner, levels = _pruner(subject, model)
    with untouched(data):
        outcomes = list(pruner.outcomes(lambda i: Sample([data], generator(0, "statistics", i))))
    steps = [outcome.step for outcome in outcomes if outcome.step is not None]
    demand(all(p.grad is None for p in model.parameters()), "a gradient is left on the model")
    demand(all(p.requires_grad for p in model.parameters()), "a parameter no longer requires a gradient")
    demand(model.training, "the model is no longer in training mode")
    demand(not hooks(model), "hooks are left on the model")
    demand(
        [s.pruned for s in steps] == [round(level * pruner.total) for level in levels],
        "the steps do not end where the schedule does",
    )
    demand(all(math.isfinite(s.delta_loss) for s in steps), "the loss is not finite")
    for name, value in model.state_dict().items():
        if name in pruner.masks:
            demand(not bool(value[~pruner.masks[name]].any()), f"{name}: a pruned weight is not zero")
        else:
            demand(torch.equal(value, before[name]), f"{name}: is not prunable and has changed")


def layers_that_are_not_weighed_together_may_be_asked_block_by_block(subject: Under) -> None:
    """What ``separable`` says: block by block, with dense inputs, the masks and values are the same."""
    if not subject.component.separable:
        not_applicable("weighs layers together, as `separable` says")
    (masks, weights), (others, values) = (_in_a_step(subject, blocks) for blocks in (None, ("0", "4", "6")))
    for name, mask in masks.items():
        demand(
            torch.equal(mask, others[name]),
            f"{name}: other weights go when each layer is asked by itself; `separable` must be False",
        )
    for name, value in weights.items():
        demand(
            torch.allclose(value, values[name], rtol=1e-6, atol=1e-9),
            f"{name}: other values when each layer is asked by itself; `separable` must be False",
        )


def _in_a_step(subject: Under, blocks: tuple[str, ...] | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Masks and parameters after a step to 50 %, the same share of every layer."""
    model, data = network(torch.float64), batch(torch.float64)
    loss = component("loss", "cross_entropy", subject.manager)
    around = Surroundings(model, loss, lambda requests: estimators(requests, subject.manager))
    name = "layerwise" if subject.component.uses_selector else "global"  # which is no choice of its own then
    selector: Selector = component("selector", name, subject.manager)
    sequential = None if blocks is None else Sequential(blocks=blocks, inputs="dense")
    try:
        pruner = Pruner(around, subject.component, Levels(0.5), selector, 1e-3, sequential=sequential)
        for _ in pruner.outcomes(lambda i: Sample([data], generator(0, "statistics", i))):
            pass
    except (SpecError, UnsupportedError) as error:
        not_applicable(f"cannot be asked block by block: {error}")
    return pruner.masks, {name: p.detach() for name, p in model.named_parameters()}


def _pruner(subject: Under, model: torch.nn.Module) -> tuple[Pruner, tuple[float, ...]]:
    loss = component("loss", "cross_entropy", subject.manager)
    around = Surroundings(model, loss, lambda requests: estimators(requests, subject.manager))
    for levels in ((0.3, 0.8), (0.25, 0.5)):  # the second for patterns of two of four
        try:
            return Pruner(around, subject.component, Levels(*levels), _selector(subject), 1e-3), levels
        except SpecError as error:
            refused = error
    not_applicable(f"refuses every schedule that is tried here: {refused}")


CHECKS = (
    *common.CHECKS,
    is_written_for_this_version,
    required_statistics_exist,
    damps_is_yes_or_no,
    saliency_has_the_weights_names_shapes_and_device,
    saliency_is_finite,
    saliency_is_finite_where_a_whole_layer_is_zero,
    saliency_leaves_its_inputs_and_the_process_alone,
    saliency_leaves_its_inputs_and_the_process_alone_when_it_fails,
    saliency_is_deterministic,
    predicted_delta_loss_is_a_finite_number_or_none,
    predicted_delta_loss_of_no_change_is_zero,
    update_gives_finite_values_for_the_surviving_weights,
    update_is_deterministic,
    proposed_masks_are_nested_and_spend_the_exact_budget,
    proposed_values_are_finite_and_fit,
    proposals_own_their_memory,
    predictions_are_finite_numbers_and_fit_the_proposal,
    proposals_leave_their_inputs_and_the_process_alone,
    proposals_leave_their_inputs_and_the_process_alone_when_they_fail,
    proposals_are_deterministic,
    the_engine_builds_the_same_criterion_from_the_options,
    proposes_the_same_from_nothing_but_what_it_requires,
    reads_every_statistic_that_it_requires,
    proposals_are_the_same_on_cuda,
    copes_with_a_layer_without_weights,
    copes_with_a_layer_of_one_weight,
    copes_with_weights_that_are_all_equal,
    copes_with_a_layer_that_is_all_zero,
    copes_with_a_layer_that_is_gone,
    prunes_a_network_and_leaves_the_rest_of_it_alone,
    layers_that_are_not_weighed_together_may_be_asked_block_by_block,
)


def _situations(subject: Under) -> Iterator[Situation]:
    """λ, dtype and what is pruned already, in all combinations; each a copy."""
    for lam in LAMBDAS:
        required = subject.component.required(lam)
        for dtype in DTYPES:
            for sparsity in SPARSITIES:
                yield situation(required, subject.manager, dtype, sparsity, lam)


def _questions(subject: Under) -> Iterator[tuple[Situation, int]]:
    """Each situation with a budget in the middle of those that the criterion takes."""
    for given in _situations(subject):
        budgets = _budgets(subject, given)
        yield given, budgets[len(budgets) // 2]


@lru_cache(maxsize=1)
def _answers(subject: Under) -> list[tuple[Situation, int, Proposal]]:
    """What the criterion proposes in each situation at each budget; several checks look at the same."""
    selector = _selector(subject)
    return [
        (given, budget, _propose(subject.component, given, budget, selector))
        for given in _situations(subject)
        for budget in _budgets(subject, given)
    ]


def _selector(subject: Under) -> Selector:
    selector: Selector = component("selector", "global", subject.manager)
    return selector


def _budgets(subject: Under, given: Situation) -> list[int]:
    """Those that the criterion does not refuse beforehand."""
    budgets = []
    for budget in given.budgets():
        try:
            subject.component.check(given.layers, [budget])
        except SpecError as error:
            refused = error
        else:
            budgets.append(budget)
    if not budgets:
        not_applicable(f"refuses every budget that is tried here: {refused}")
    return budgets


def _propose(criterion: Criterion, given: Situation, budget: int, selector: Selector) -> Proposal:
    proposal = criterion.propose(given.context(budget, selector))
    demand(isinstance(proposal, Proposal), f"proposed {type(proposal).__name__}, not a prunekit.Proposal")
    return proposal


def _parts(proposal: Proposal) -> dict[str, object]:
    """A copy of what counts of a proposal; values only where weights stay."""
    values = {k: v[proposal.masks[k]].clone() for k, v in (proposal.values or {}).items()}
    return {
        "masks": {k: m.clone() for k, m in proposal.masks.items()},
        "values": values,
        "prediction": proposal.predicted_delta_loss,
    }


def _alike(first: Mapping[str, object], second: Mapping[str, object], otherwise: str) -> None:
    for part, value in first.items():
        demand(same(value, second[part]), f"{otherwise} (its {part})")


def _changes(proposal: Proposal, given: Situation) -> bool:
    """Whether weights that stay get other values."""
    values = proposal.values or {}
    return any(
        not torch.equal(v[given.masks[k]], given.weights[k][given.masks[k]]) for k, v in values.items()
    )


def _values_fit(values: Mapping[str, Tensor], given: Situation, masks: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        w = given.weights.get(name)
        demand(w is not None, f"new values for {name!r}, which is not a prunable weight")
        assert w is not None
        demand(
            value.shape == w.shape, f"{name} has shape {tuple(w.shape)}, its new values {tuple(value.shape)}"
        )
        demand(value.device == w.device, f"{name} is on {w.device}, its new values on {value.device}")
        refuse_non_finite({name: value}, masks, "the new value of")


def _saliency(criterion: Criterion, given: Situation) -> dict[str, Tensor]:
    try:
        return dict(criterion.saliency(given.weights, given.statistics))
    except UnsupportedError:
        if type(criterion).propose is Criterion.propose:
            raise
        not_applicable("chooses masks itself and has no saliency")


def _predicted(criterion: Criterion, given: Situation, masks: Mapping[str, Tensor]) -> float | None:
    return criterion.predicted_delta_loss(given.weights, given.statistics, masks)


def _defines(subject: Under, method: str) -> None:
    if getattr(type(subject.component), method) is getattr(Criterion, method):
        not_applicable(f"defines no {method}")


def _failing(statistics: Estimates) -> Estimates:
    return Estimates({request: Failing(tensors) for request, tensors in statistics.items()})


def _with(given: Situation, weights: Mapping[str, Tensor], statistics: Estimates) -> Situation:
    return Situation(weights, statistics, given.masks, given.proposed, given.layers, given.lam)
