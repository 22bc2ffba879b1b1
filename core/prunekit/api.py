"""The public functions. Each imports what it needs when it is called, so reading results needs no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from prunekit.distributed import started, together
from prunekit.errors import DataError, PrunekitWarning, RunError, SpecError
from prunekit.masks.settings import Prunable
from prunekit.network.devices import device_errors
from prunekit.network.ordinary import ordinary_tensors
from prunekit.pruning.sequential import Sequential
from prunekit.reports.opened import RunResults
from prunekit.results import Results
from prunekit.statistics.request import Estimates, Request, Statistic

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from prunekit.losses.base import Loss
    from prunekit.masks.attach import Attachment
    from prunekit.network.call import Batch, Inputs
    from prunekit.observing.listener import Listener
    from prunekit.observing.probe import Probe
    from prunekit.pruning.coverage import Coverage
    from prunekit.pruning.criterion import Criterion
    from prunekit.pruning.scheduler import Scheduler
    from prunekit.pruning.selector import Selector
    from prunekit.pruning.until import Until
    from prunekit.records import Attempt, Row, StepRecord
    from prunekit.reports.compare import Comparison
    from prunekit.runs.folders import Report as FolderReport
    from prunekit.statistics.base import Estimator
    from prunekit.statistics.joint import Certificate
    from prunekit.statistics.operator import Operator
    from prunekit.sweeps.opened import Sweep

Given: TypeAlias = str | Mapping[str, object]
"""A component by its name, or by a mapping with the spec's keys."""

Batches: TypeAlias = "Iterable[Batch]"


@together()
@device_errors()
@ordinary_tensors()
def statistics(
    model: nn.Module,
    batches: Batches | Callable[[], Batches],
    requests: Iterable[str | Statistic],
    loss: Given | Loss | Callable[..., Tensor] | None = None,
    parameters: str | Sequence[str] | None = None,
    *,
    seed: int = 0,
    memory: int | str | None = None,
) -> Estimates:
    """Compute statistics of the loss at the model's weights, in one pass, in eval mode.

    Args:
        model: Left as it was found, also on error.
        batches: ``(input, target)`` pairs on the model's device, or mappings with ``labels`` as tokenizers'
            collators make them; sums are accumulated, so batch sizes do not matter. An input is a tensor, a tuple
            or list of arguments, or a mapping of keyword arguments; the model returns a tensor, an object or
            mapping with ``logits``, or a tuple that begins with the tensor. Where ``torch.distributed`` is
            initialised, each process gives its own part of the examples, possibly none; all call this together and
            get the same result.
        requests: Names or :class:`prunekit.Statistic` with options.
        loss: A name, a mapping, an object, or a function that returns the mean over a batch's examples. ``None``:
            ``cross_entropy`` where targets are class indices of the outputs' shape, ``causal_lm`` for a decoder-only
            language model whose labels are its tokens; ambiguous cases are rejected.
        parameters: ``None`` for the prunable weights, ``"all"`` for every parameter, or name patterns.
        seed: For statistics that draw.
        memory: Bytes, or text such as ``"2GiB"``, for activations and products; larger batches are split.

    Returns:
        Request to ``{parameter name: tensor}``; zeros for parameters that the loss does not depend on.

    Raises:
        PrunekitError: If something is unknown or cannot be computed, by name.
    """
    from prunekit.plugins.build import estimators
    from prunekit.seeds import generator
    from prunekit.statistics.estimate import estimate

    wanted = [requests] if isinstance(requests, str | Statistic) else list(requests)
    selected, built = _parameters(model, parameters), estimators(wanted)
    held = _looked_at(model, selected, _fresh(batches))
    task = _task(loss, model, held)
    estimated = estimate(model, held, built, task, selected, generator(seed, "statistics", 0), _bytes(memory))
    _warn_of_vanished(model, task, held, built, estimated.statistics, only_by_the_loss=True)
    return estimated.statistics


@device_errors()
@ordinary_tensors()
def coverage(
    model: nn.Module,
    batches: Batches | Callable[[], Batches] | None = None,
    prunable: Mapping[str, object] | Prunable | None = None,
) -> Coverage:
    """Report what is pruned in a model, what is not and why, by class of module; it prints as a table.

    Args:
        model: Left as it was found, also on error.
        batches: As for :func:`statistics`, though targets are not needed. With them it also says which weights no example
            uses, and which rule serves the others: ``fast``, one capture for all examples, or the exact ``fallback``,
            example by example.
        prunable: As for :func:`prune`.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
        >>> print(coverage(model))
        module     pruned  not pruned  tied
        Linear         12           3     –
        LayerNorm       –           6     –
    """
    from prunekit.plugins.build import options_of
    from prunekit.pruning.coverage import coverage as covered

    if isinstance(prunable, Mapping):
        prunable = options_of(Prunable, prunable, "prunable")
    return covered(model, None if batches is None else _fresh(batches), prunable)


def operator(
    model: nn.Module,
    batches: Batches | Callable[[], Batches],
    kind: str,
    loss: Given | Loss | Callable[..., Tensor] | None = None,
    parameters: str | Sequence[str] | None = None,
    *,
    memory: int | str | None = None,
) -> Operator:
    """Make an operator for matrix-free products with a curvature matrix: ``op @ {name: tensor}``.

    Args:
        model: Left as it was found by every product, also on error.
        batches: As for :func:`statistics`; read again for every product.
        kind: ``ggn``, ``hessian`` or ``empirical_fisher``.
        loss: As for :func:`statistics`.
        parameters: ``None`` for the prunable weights, ``"all"`` for every parameter, or name patterns.
        memory: Bytes, or text such as ``"2GiB"``, for activations.

    Returns:
        An operator averaged like the loss; see :class:`prunekit.statistics.operator.Operator`.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
        >>> hessian = operator(model, [(x, torch.zeros(2, 1))], "hessian", loss="mse")
        >>> (hessian @ {"weight": torch.tensor([[1.0, 0.0]])})["weight"]  # of 2 xxᵀ, averaged
        tensor([[10., 14.]], dtype=torch.float64)
    """
    from prunekit.statistics.estimate import DEFAULT_MEMORY
    from prunekit.statistics.operator import Operator

    again = batches if callable(batches) else _fresh(batches)
    return Operator(
        model,
        lambda: _fresh(again),
        kind,
        _task(loss, model, again),
        _parameters(model, parameters),
        _bytes(memory) or DEFAULT_MEMORY,
    )


@together()
@device_errors()
@ordinary_tensors()
def saliency(
    model: nn.Module,
    batches: Batches | Callable[[], Batches],
    criterion: Given | Criterion = "qm",
    lam: float | None = None,
    loss: Given | Loss | Callable[..., Tensor] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    parameters: str | Sequence[str] | None = None,
    *,
    seed: int = 0,
    memory: int | str | None = None,
) -> dict[str, Tensor]:
    """Compute a criterion's saliencies, the λ term included; higher = keep.

    Args:
        model: Left as it was found, also on error.
        batches: As for :func:`statistics`.
        criterion: A name, a mapping with the spec's keys, or an object.
        lam: Locality weight λ (default 0).
        loss: As for :func:`statistics`.
        masks: Evaluate at the masked weights; ``True`` = kept.
        parameters: ``None`` for the prunable weights, ``"all"`` or name patterns.
        seed: For statistics that draw.
        memory: Bytes, or text such as ``"2GiB"``, for activations and products.

    Returns:
        One tensor per parameter, in its shape; nats per example for the loss models.
    """
    import torch

    from prunekit.masks.apply import checked
    from prunekit.masks.axes import layers_of
    from prunekit.network.restore import holding
    from prunekit.plugins.build import component, criterion_with_lambda, estimators
    from prunekit.pruning.proposal import Context
    from prunekit.seeds import generator
    from prunekit.statistics.estimate import estimate

    chosen, strength = criterion_with_lambda(criterion, lam)
    selected = _parameters(model, parameters)
    given = {name: torch.as_tensor(mask) for name, mask in (masks or {}).items()}
    masked = {
        name: p.detach().masked_fill(~given[name].to(p.device), 0.0)
        for name, p in checked(model, given).items()
    }
    built, kept_now = estimators(chosen.required(strength)), _complete(given, selected)
    with holding(model, masked):
        held = _looked_at(model, selected, _fresh(batches))
        task = _task(loss, model, held)
        estimated = estimate(
            model, held, built, task, selected, generator(seed, "statistics", 0), _bytes(memory), kept_now
        )
        _warn_of_vanished(model, task, held, built, estimated.statistics, kept_now)
        weights = {
            n: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for n, p in selected.items()
        }
    kept = {n: torch.ones_like(p, dtype=torch.bool) for n, p in selected.items()}
    layers = layers_of(model, selected)
    return chosen.scores(
        Context(weights, estimated.statistics, kept, 0, strength, component("selector", "global"), layers)
    )


@dataclass(frozen=True)
class Pruning:
    """What :func:`prune` did.

    Attributes:
        model: The pruned model.
        masks: Bool tensors, ``True`` = kept.
        steps: A record per step, readable by attribute or key; metrics of splits are ``None``.
        attempts: Every attempt, including those that were taken back.
        warnings: Warnings that the user was given.
        probes: Label of a probe to its ``steps``, what it found at each, as ``inspect --json`` shows it.
        stopped: With ``until``, how far it got and why it stopped, in words; else ``None``.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    steps: list[StepRecord]
    attempts: list[Attempt]
    warnings: list[str] = field(default_factory=list)
    probes: dict[str, dict[str, list[Row]]] = field(default_factory=dict)
    stopped: str | None = None

    @property
    def sparsity(self) -> float:
        """Pruned fraction of the prunable weights."""
        return self.steps[-1].sparsity if self.steps else 0.0

    def _repr_html_(self) -> str:
        from prunekit.reports.notebook import of_pruning

        rest = {"probes": self.probes, "warnings": self.warnings, "stopped": self.stopped}
        return of_pruning(self.steps, self.attempts, rest)

    def attach(self, optimizer: Optimizer) -> Attachment:
        """Keep the pruned weights at zero after each of the optimizer's steps; undo with ``.remove()``."""
        from prunekit.masks.attach import attach

        return attach(self.model, optimizer, self.masks)


class ShortfallError(RunError):
    """A scheduler has stopped short of its target; what is pruned stays pruned.

    Attributes:
        pruning: What :func:`prune` did, as it would have returned it.
    """

    def __init__(self, message: str, pruning: Pruning) -> None:
        super().__init__(message)
        self.pruning = pruning


@together()
@device_errors()
@ordinary_tensors()
def prune(
    model: nn.Module,
    batches: Batches | Callable[[], Batches],
    criterion: Given | Criterion = "qm",
    sparsity: float | None = None,
    steps: int | None = None,
    scheduler: Given | Scheduler = "exponential",
    selector: Given | Selector = "global",
    lam: float | None = None,
    loss: Given | Loss | Callable[..., Tensor] | None = None,
    prunable: Mapping[str, object] | Prunable | None = None,
    *,
    masks: Mapping[str, Tensor] | None = None,
    probes: Iterable[Given | Probe] = (),
    zeros: Literal["pruned", "free"] = "pruned",
    until: Mapping[str, object] | Until | None = None,
    valid: Batches | Callable[[nn.Module], float] | None = None,
    blocks: str | Sequence[str] | Mapping[str, object] | Sequential | None = None,
    seed: int = 0,
    memory: int | str | None = None,
    listener: Listener | None = None,
) -> Pruning:
    """Prune a model in place, re-estimating its statistics at every step. Weights are not trained in between.

    Args:
        model: Any module; only its prunable weights change.
        batches: As for :func:`statistics`; a callable gives a fresh sample for each step.
        criterion: A name, a mapping with the spec's keys, or an object.
        sparsity: Target fraction of the prunable weights, in [0, 1).
        steps: Number of steps (14 where the scheduler has steps and none are given).
        scheduler: A name, mapping or object; a value given both here and as an argument is an error.
        selector: A name, mapping or object.
        lam: Locality weight λ (default 0).
        loss: As for :func:`statistics`.
        prunable: ``{include, exclude, biases, norms}``; default: the matrices that multiply inputs.
        masks: What is pruned already, as bool tensors, ``True`` = kept; parameters not named are kept.
        probes: Probes that measure at steps: names, mappings with the spec's keys, or objects.
        zeros: Whether weights that are exactly zero now are ``pruned``, so that they stay zero and count, or ``free``.
        until: Prune only as far as a metric holds: ``{"metric": "valid_error", "rise": 0.01}``, or ``valid_loss``; also
            with ``relative`` and ``bisect``. The step that breaks it is taken back. It can also be given in the scheduler's
            mapping.
        valid: Batches that the metric is measured on, the same at every reading; or a function of the model that
            returns the metric.
        blocks: Prune block by block, which holds the statistics and activations of one at a time: name patterns such as
            ``"model.layers.*"``, ``"auto"`` for the blocks of a transformer, or a mapping ``{blocks, inputs, offload}`` with
            the keys of :class:`Sequential`. By default a block sees the outputs of the pruned blocks before it.
        seed: For criteria and statistics that draw.
        memory: Bytes, or text such as ``"2GiB"``, for activations and products.
        listener: Follows the progress; default: as for :func:`run`.

    Raises:
        PrunekitError: If an argument is not acceptable (the model is then unchanged) or a step fails.
        ShortfallError: If the scheduler stopped short of its target; ``error.pruning`` is what was done.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(8, 3)
        >>> batch = (torch.randn(20, 8), torch.randint(3, (20,)))
        >>> pruning = prune(model, [batch], "lm", sparsity=0.5, steps=2)
        >>> int((model.weight == 0).sum()), pruning.steps[-1].pruned
        (12, 12)
    """
    from prunekit.masks.axes import layers_of, unknown_axes
    from prunekit.masks.prunable import prunable_parameters
    from prunekit.network.axes import observe_axes
    from prunekit.network.call import unpack
    from prunekit.observing.moment import Surroundings
    from prunekit.observing.probe import asked as answer
    from prunekit.plugins.build import (
        component,
        criterion_with_lambda,
        estimators,
        options_of,
        ranking,
        scheduler_with_until,
        step_probes,
    )
    from prunekit.plugins.build import measures as measures_of
    from prunekit.pruning.quality import watched
    from prunekit.pruning.sample import Sample
    from prunekit.pruning.step import Pruner
    from prunekit.pruning.until import KEY, limited
    from prunekit.reports.notebook import Steps
    from prunekit.reports.notebook_progress import following
    from prunekit.seeds import generator
    from prunekit.statistics.estimate import DEFAULT_MEMORY

    room = _bytes(memory)
    unlimited, limit = scheduler_with_until(scheduler, until)
    chosen: Scheduler = component("scheduler", unlimited, given={"sparsity": sparsity, "steps": steps})
    if isinstance(prunable, Mapping):
        prunable = options_of(Prunable, prunable, "prunable")
    ranked, strength = criterion_with_lambda(criterion, lam)
    asked = step_probes(probes)
    for probe, _ in asked.values():
        probe.check(ranked.name, partial(ranked.joint_model, strength))
    if isinstance(batches, Iterator):
        batches = list(batches)

    def held() -> list[tuple[Inputs, Tensor]]:
        # A list: each step needs one sample throughout, and a loader may draw another at every reading.
        return [unpack(batch) for batch in _fresh(batches)]

    def drawn(index: int) -> Sample:
        return Sample(held(), generator(seed, "statistics", index), held if callable(batches) else None)

    first: list[Sample] = []

    def first_batches() -> Sequence[Batch]:
        if not first:
            first.append(drawn(0))
        return first[0].batches

    if isinstance(blocks, str | Sequence):
        blocks = {"blocks": blocks if isinstance(blocks, str) else tuple(blocks)}
    if isinstance(blocks, Mapping):
        blocks = options_of(Sequential, blocks, "blocks")
    parameters = prunable_parameters(model, prunable)
    if blocks is None and not unknown_axes(
        model, parameters
    ):  # what does not fit is refused before anything is read
        for estimator in estimators(ranked.required(strength)).values():
            estimator.check(layers_of(model, parameters), room or DEFAULT_MEMORY)
    task = _task(loss, model, first_batches)
    measured = measures_of(chosen.needed(ranked, fresh=callable(batches)), seed)
    if limit is not None:
        measured[KEY] = watched(model, task, limit.metric, valid)
        chosen = limited(chosen, limit)
    elif valid is not None:
        raise SpecError("valid: is for `until`, which is not given")
    observe_axes(model, parameters, first_batches)
    pruner = Pruner(
        Surroundings(model, task, estimators, memory=room, ranking=ranking),
        ranked,
        chosen,
        component("selector", selector),
        strength,
        prunable,
        measured,
        masks,
        zeros,
        sequential=blocks,
    )
    steps_done, attempts = [], []
    found: dict[str, dict[str, list[Row]]] = {label: {"steps": []} for label in asked}
    with following(listener) as told:
        told.phase("prune", None if pruner.levels is None else len(pruner.levels), 0)
        for outcome in pruner.outcomes(lambda index: first.pop() if first else drawn(index)):
            attempts.append(outcome.attempt)
            if outcome.step is None or outcome.moment is None:
                told.attempt(outcome.attempt)
                continue
            steps_done.append(outcome.step)
            number = outcome.step.step
            for label, (probe, moments) in asked.items():
                if moments.at("step", number):
                    record = answer(probe, outcome.moment, generator(seed, "probe", label, "step", number))
                    found[label]["steps"].append({"step": number, **record.summary})
            told.step(outcome.step)
    stop = chosen.stopped(attempts)
    why = None if stop is None else stop.why
    done = Pruning(model, pruner.masks, Steps(steps_done), attempts, pruner.warnings, found, why)
    short = pruner.shortfall(attempts)
    if short is not None:
        raise ShortfallError(short, done)
    return done


@together()
@device_errors()
@ordinary_tensors()
def probe(
    model: nn.Module,
    batches: Batches | Callable[[], Batches],
    probe: Given | Probe,
    masks: Mapping[str, Tensor] | None = None,
    *,
    networks: Mapping[str, Mapping[str, Tensor | np.ndarray]] | None = None,
    loss: Given | Loss | Callable[..., Tensor] | None = None,
    prunable: Mapping[str, object] | Prunable | None = None,
    seed: int = 0,
    memory: int | str | None = None,
) -> dict[str, np.ndarray]:
    """Ask a probe about a model's loss landscape, outside any run.

    Args:
        model: Left as it was found, also on error.
        batches: As for :func:`statistics`; they stand for the training split.
        probe: A name, a mapping with the spec's keys, or an object.
        masks: Measure at the masked weights; bool tensors, ``True`` = kept; parameters not named are kept.
        networks: Weights of this model by the network's name, for probes that compare the networks of a run (``line``, the
            ``path`` of ``plane``): state dicts, or ``results.weights("pruned")`` of several results files. Anything left
            out of one is as in the model.
        loss: As for :func:`statistics`.
        prunable: As for :func:`prune`.
        seed: Seed of the probe's random numbers.
        memory: Bytes, or text such as ``"2GiB"``, for activations and products.

    Returns:
        The probe's arrays by name; by ``group/name`` where several groups use the same name.

    Raises:
        PrunekitError: If an argument is not acceptable, or the probe measures steps or compares the networks of a run.
    """
    from prunekit.masks.prunable import prunable_parameters
    from prunekit.network.call import unpack
    from prunekit.network.restore import holding
    from prunekit.observing.alone import MomentAlone, arrays, refuse_nothing, whole, whole_network
    from prunekit.observing.moment import Surroundings
    from prunekit.observing.probe import asked
    from prunekit.plugins.build import component, estimators, options_of, ranking
    from prunekit.pruning.start import fitting
    from prunekit.seeds import generator

    if isinstance(prunable, Mapping):
        prunable = options_of(Prunable, prunable, "prunable")
    chosen: Probe = component("probe", probe)
    if "examples" not in chosen.options.model_fields_set and not isinstance(probe, type(chosen)):
        chosen = whole(chosen)
    parameters = prunable_parameters(model, prunable)
    held = [unpack(batch) for batch in _looked_at(model, parameters, _fresh(batches))]
    phases = {name: whole_network(model, name, weights) for name, weights in (networks or {}).items()}
    surroundings = Surroundings(
        model, _task(loss, model, held), estimators, phases=phases, memory=_bytes(memory), ranking=ranking
    )
    kept = fitting(model, parameters, masks)
    with holding(model, {name: parameters[name].detach() * kept[name] for name in kept if masks}):
        record = asked(chosen, MomentAlone(surroundings, kept, held), generator(seed, "probe", chosen.name))
    refuse_nothing(chosen.name, record)
    return arrays(record)


@together()
@device_errors()
@ordinary_tensors()
def certificate(
    model: nn.Module,
    batches: Batches | Callable[[], Batches],
    masks: Mapping[str, Tensor],
    weights: Mapping[str, Tensor] | None = None,
    *,
    damping: float = 0.1,
    curvature: Literal["ggn", "ggn_mc", "empirical_fisher"] = "ggn",
    gradient: bool = True,
    before: Mapping[str, Tensor] | None = None,
    loss: Given | Loss | Callable[..., Tensor] | None = None,
    prunable: Mapping[str, object] | Prunable | None = None,
    exact: bool = False,
    evaluations: int = 400,
    nodes: int = 10_000,
    seed: int = 0,
    memory: int | str | None = None,
) -> Certificate:
    """Bound how far a choice of weights is from the best one with as many, under a quadratic model of the loss.

    The bound is on ``gᵀΔ + ½Δᵀ(C + αI)Δ``, Δ the change from the current weights; it does not say how far the loss is from
    that. The probe ``certificate`` does the same at the steps of a run.

    Args:
        model: The model with its weights before anything is pruned; left as it was found.
        batches: As for :func:`statistics`.
        masks: The choice, bool tensors or arrays, ``True`` = kept; parameters not named are kept.
        weights: New values of the weights that stay, by parameter; default: the minimum of the quadratic model for this
            choice.
        damping: α > 0.
        curvature: C: ``ggn``, exact over classes; ``ggn_mc``, from labels that the network draws; ``empirical_fisher``.
        gradient: Whether the quadratic model has the first-order term.
        before: Weights pruned earlier, which no choice can contain; given like ``masks``.
        loss: As for :func:`statistics`.
        prunable: As for :func:`prune`.
        exact: Look for the best choice itself, of at most 256 weights.
        evaluations: Maximum number of evaluations of the dual.
        nodes: Maximum number of nodes in the search for the best choice.
        seed: For labels that are drawn.
        memory: Bytes, or text such as ``"2GiB"``, for activations and factors.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(6, 3)
        >>> batch = (torch.randn(50, 6), torch.randint(3, (50,)))
        >>> largest = model.weight.abs() > model.weight.abs().median()
        >>> found = certificate(model, [batch], {"weight": largest})
        >>> found.budget, found.bound <= found.fitted <= found.value
        (9, True)
    """
    import torch

    from prunekit.masks.prunable import prunable_parameters
    from prunekit.network.call import unpack
    from prunekit.observing.moment import StepMoment, Surroundings
    from prunekit.observing.probe import asked
    from prunekit.plugins.build import component, estimators, options_of
    from prunekit.pruning.start import fitting
    from prunekit.seeds import generator
    from prunekit.statistics.joint import Certificate

    if isinstance(prunable, Mapping):
        prunable = options_of(Prunable, prunable, "prunable")
    parameters = prunable_parameters(model, prunable)
    open_ = fitting(model, parameters, before)
    kept = {name: mask & open_[name] for name, mask in fitting(model, parameters, masks).items()}
    given = {name: torch.as_tensor(value) for name, value in (weights or {}).items()}
    strangers = [n for n, v in given.items() if n not in parameters or v.shape != parameters[n].shape]
    if strangers:
        raise SpecError(
            f"weights: {', '.join(strangers)}: no prunable parameter of that name and shape; there are "
            f"{', '.join(f'{n} {tuple(p.shape)}' for n, p in parameters.items())}"
        )

    def then() -> dict[str, Tensor]:
        return {n: p.detach() * open_[n] for n, p in parameters.items()}

    def after() -> dict[str, Tensor]:
        return {n: given.get(n, p.detach()).to(p) * kept[n] for n, p in parameters.items()}

    held = [unpack(batch) for batch in _looked_at(model, parameters, _fresh(batches))]
    options = {"damping": damping, "curvature": curvature, "gradient": gradient, "exact": exact}
    limits = {"evaluations": evaluations, "nodes": nodes}
    probe: Probe = component("probe", {"name": "certificate", "store": True, **options, **limits})
    moment = StepMoment(
        "proposal",
        Surroundings(model, _task(loss, model, held), estimators, memory=_bytes(memory)),
        kept,
        1,
        held,
        Estimates(),
        then,
        after,
        None,
        float("nan"),
        masks_before=open_,
    )
    groups = asked(probe, moment, generator(seed, "probe", "certificate")).groups
    found = {name: series.values for name, series in groups["certificate"].items()}
    if weights is None:
        found["value"] = found["fitted"]
    found.pop("gap")
    return Certificate(nu=groups["stored"]["nu"].values, **found)


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zero a model's masked weights in place, once; masks are bool tensors or arrays, ``True`` = kept."""
    from prunekit.masks.apply import apply_masks as apply

    apply(model, masks)


def save_pretrained(
    model: nn.Module,
    out: str | Path,
    masks: Mapping[str, Tensor] | None = None,
    *,
    provenance: Mapping[str, object] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a transformers network as a folder that ``from_pretrained`` loads, with its masks beside it.

    Names in the files are those that transformers gives, also for experts and tied heads. Other contents of the folder
    that the network came from (a tokenizer), except weights and code, are copied.

    Args:
        model: Left as it was found. Weights that the masks prune are zero in the folder.
        out: The new folder; it gets its name once it is complete.
        masks: Parameter to a bool tensor, ``True`` = kept, written to ``prunekit-masks.safetensors`` by these names.
        provenance: Further entries of ``prunekit.json``, as JSON.
        overwrite: Replace a folder written this way earlier; no other is ever replaced.

    Raises:
        SpecError: If it is not a transformers network, or a mask does not fit.
        ResultsError: If the folder exists or cannot be written.
    """
    import torch

    from prunekit.reports.pretrained import save_pretrained as save

    tensors = None if masks is None else {name: torch.as_tensor(mask) for name, mask in masks.items()}
    save(model, Path(os.path.expanduser(out)), tensors, dict(provenance or {}), overwrite)


def attach(model: nn.Module, optimizer: Optimizer, masks: Mapping[str, Tensor]) -> Attachment:
    """Keep a model's masked weights at zero in your own training loop, for masks from anywhere.

    They are zeroed at once and after everything that the optimizer does to weights; an optimizer may wrap others. For
    a model that ``fully_shard`` spreads over processes, give whole masks in each; first shard it, then make its optimizer,
    then call this.

    Args:
        model: The model that is trained.
        optimizer: The optimizer that trains it.
        masks: Bool tensors or arrays, such as a results file's, ``True`` = kept.

    Returns:
        A handle with ``.remove()``.

    Raises:
        SpecError: If a mask does not fit the model, or the optimizer's steps cannot be seen.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        >>> handle = attach(model, optimizer, {"weight": torch.tensor([[True, False]])})
        >>> model(torch.ones(4, 2)).square().mean().backward()
        >>> optimizer.step()
        >>> (model.weight != 0).tolist()
        [[True, False]]
    """
    from prunekit.masks.attach import attach as attach_masks

    return attach_masks(model, optimizer, masks)


def run(
    spec: str | Path | Mapping[str, object],
    out: str | Path | None = None,
    overrides: Mapping[str, object] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    block: Iterable[str] = (),
    code: bool = True,
    listener: Listener | None = None,
) -> RunResults:
    """Run a spec and return its results.

    Under ``torchrun`` every process calls this: they share the examples of each step and of each evaluation,
    and process 0 alone writes what all of them return.

    Args:
        spec: A file, or a mapping of the same shape.
        out: The results file, or a link to it; default: the spec's name with ``.h5`` in the current folder.
        overrides: Dotted path to value, as ``--set``.
        resume: Continue an unfinished output; start a missing one; leave a complete one alone.
        overwrite: Replace an existing output.
        block: Plugins to leave out.
        code: ``False`` rejects specs that name Python to run: factories, and plugins that are not built in.
        listener: Follows the progress. By default lines below the cell of a notebook do, and elsewhere nothing;
            ``prunekit.Listener()`` is silent everywhere.

    Raises:
        SpecError: With every problem of the spec.
        ResultsError: If the output exists, cannot be resumed, or another process is writing it.
        RunError: If the run fails; its file then says so and can be resumed.
    """
    from prunekit.plugins.host import manager_for
    from prunekit.reports.notebook_progress import following
    from prunekit.runs.start import start
    from prunekit.spec import load

    with started(), together(), device_errors(), ordinary_tensors():
        manager = manager_for(block, code)
        resolved = load(spec, overrides, manager)
        path = Path(os.path.expanduser(out if out is not None else f"{resolved.settings.name}.h5"))
        if path.is_symlink():  # a file takes the output's name; the link must stay and its target be written
            path = Path(os.path.realpath(path))
        with following(listener) as told:
            start(resolved, path, manager, told, resume=resume, overwrite=overwrite)
    return RunResults.open(path)


def prune_folder(
    spec: str | Path | Mapping[str, object],
    out: str | Path,
    overrides: Mapping[str, object] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    block: Iterable[str] = (),
    code: bool = True,
    told: Callable[[str, int, int], None] | None = None,
) -> FolderReport:
    """Prune a transformers network from its folder into another, block by block, without holding it as a whole.

    A block's weights are read from the safetensors files when its turn comes, pruned in single precision, rounded to the
    files' type, written and released; each block sees the outputs of the pruned blocks before it. The result is that of
    :func:`run` with the same spec. ``from_pretrained`` loads the new folder.

    Args:
        spec: As for :func:`run`, with the model ``hf``, a data set, and ``prune`` with ``sequential``; nothing else.
        out: The new folder.
        overrides: Dotted path to value, as ``--set``.
        resume: Continue with the next block after an interrupted call.
        overwrite: Replace a folder that prunekit wrote.
        block: Plugins to leave out.
        code: ``False`` rejects specs that name Python to run.
        told: Called after each block with its name, how many are done, and how many there are.

    Raises:
        SpecError: If the spec asks for something that needs the whole network.
        CheckpointError: If a file is missing, cut off, or holds a value that is not finite.
        ResultsError: If something exists that must not be replaced, or nothing can be written.
    """
    from prunekit.plugins.host import manager_for
    from prunekit.runs.folders import prune_folder as pruned
    from prunekit.spec import load

    with device_errors(), ordinary_tensors():
        manager = manager_for(block, code)
        resolved = load(spec, overrides, manager)
        target = Path(os.path.expanduser(out))
        return pruned(resolved, target, manager, resume, overwrite, told or (lambda name, done, total: None))


def open(path: str | Path) -> RunResults:
    """Open a results file read-only; needs numpy and h5py, not torch. See :class:`prunekit.results.Results`."""
    return RunResults.open(path)


def open_sweep(folder: str | Path) -> Sweep:
    """Read the folder of a sweep: the status of each run, and all numbers in one table; needs no torch.

    Raises:
        ResultsError: If it is not such a folder.
    """
    from prunekit.sweeps.opened import Sweep

    return Sweep(folder)


def compare(runs: Iterable[Results | str | Path], anyway: bool = False) -> Comparison:
    """Put runs side by side; needs no torch. See :func:`prunekit.reports.compare.compare`.

    Args:
        runs: Results files, or open results; at least two.
        anyway: Compare runs under different protocols too.

    Raises:
        ResultsError: If one cannot be read, or they were made under different protocols; the message says which values
            differ.
    """
    from prunekit.reports.compare import compare as compared

    return compared(runs, anyway)


def _bytes(memory: int | str | None) -> int | None:
    """A budget as a number."""
    from prunekit.units import bytes_of

    try:
        return bytes_of(memory) if isinstance(memory, str) else memory
    except ValueError as error:
        raise SpecError(f"memory: {error}; found {memory!r}") from None


def _parameters(model: nn.Module, parameters: str | Sequence[str] | None) -> dict[str, Tensor]:
    from prunekit.masks.prunable import named_parameters, prunable_parameters

    if parameters is None:
        return prunable_parameters(model)
    if parameters == "all":
        return named_parameters(model)
    return named_parameters(model, (parameters,) if isinstance(parameters, str) else tuple(parameters))


def _looked_at(model: nn.Module, parameters: Mapping[str, Tensor], batches: Batches) -> Batches:
    """The batches, after a look at how weights are used whose class does not tell on which axis their inputs are."""
    from prunekit.masks.axes import unknown_axes
    from prunekit.network.axes import observe_axes

    if not unknown_axes(model, parameters):
        return batches
    held = list(batches)  # read once: a loader may draw others at another reading
    observe_axes(model, parameters, lambda: held)
    return held


def _task(
    loss: Given | Loss | Callable[..., Tensor] | None,
    model: nn.Module,
    batches: Batches | Callable[[], Batches],
) -> Loss:
    """The loss that is given, or the one that the first batch calls for."""
    if loss is not None:
        from prunekit.plugins.build import as_loss

        return as_loss(loss)
    from prunekit.network.restore import preserved_rng
    from prunekit.plugins.task import suited

    with preserved_rng():  # a loader that draws its order draws the same one when it is read for good
        first = next(iter(_fresh(batches)), None)
    return suited(model, first)


def _warn_of_vanished(
    model: nn.Module,
    loss: Loss,
    batches: Batches,
    estimators: Mapping[Request, Estimator],
    statistics: Estimates,
    masks: Mapping[str, Tensor] | None = None,
    only_by_the_loss: bool = False,
) -> None:
    """Warn of statistics that are zero in every weight; or only of those that this loss cannot have."""
    import warnings
    from itertools import islice

    from prunekit.statistics.vanishing import LINEAR, vanished

    def first() -> list[Batch]:
        return list(islice(batches, 1))

    for name, reason in vanished(model, loss, first, estimators, statistics, masks).items():
        if reason == LINEAR or not only_by_the_loss:
            warnings.warn(f"statistic {name}: {reason}", PrunekitWarning, stacklevel=5)


def _complete(
    masks: Mapping[str, Tensor] | None, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """Masks of all parameters; those that were not given keep everything."""
    import torch

    if not masks:
        return None
    return {
        name: torch.as_tensor(masks[name], device=p.device)
        if name in masks
        else torch.ones_like(p, dtype=torch.bool)
        for name, p in parameters.items()
    }


def _fresh(batches: Batches | Callable[[], Batches]) -> Batches:
    """Batches that can be read more than once; an iterator is read into a list."""
    iterable = batches() if callable(batches) else batches
    if isinstance(iterable, Iterator):
        return list(iterable)
    if isinstance(iterable, tuple) and len(iterable) == 2 and hasattr(iterable[1], "shape"):
        raise DataError("batches must be an iterable of (input, target) pairs; for a single pair use [pair]")
    if isinstance(iterable, Mapping):
        raise DataError(
            "batches must be an iterable of mappings with labels; for a single mapping use [mapping]"
        )
    return iterable
