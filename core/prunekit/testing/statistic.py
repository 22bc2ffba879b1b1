"""What every statistic promises: shapes and names, sums that do not depend on batches, and a model left as found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from prunekit.errors import UnsupportedError
from prunekit.losses.base import Loss
from prunekit.masks.apply import apply_masks
from prunekit.masks.axes import layers_of
from prunekit.masks.prunable import prunable_parameters
from prunekit.plugins.build import component
from prunekit.seeds import generator
from prunekit.statistics.base import Estimator
from prunekit.statistics.estimate import DEFAULT_MEMORY, estimate
from prunekit.testing import component as common
from prunekit.testing.guard import Injected, elsewhere, failing, same, shares_memory, untouched
from prunekit.testing.situation import DTYPES, EXAMPLES, Batch, batch, network
from prunekit.testing.verdict import Subject, demand, not_applicable

Under = Subject[Estimator]
Found = Mapping[str, Tensor]

_LITTLE = 20_000  # bytes, of which a pass of a few of the twelve examples takes as many


def gives_a_tensor_of_its_shape_for_each_parameter(subject: Under) -> None:
    """Floating-point, in float32 at least, on the parameter's device, finite."""
    for dtype in DTYPES:
        for pruned in (False, True):
            model = _model(dtype, pruned)
            statistic = _estimate(subject, model, [batch(dtype)], pruned)
            parameters = prunable_parameters(model)
            demand(
                list(statistic) == list(parameters),
                f"gives {', '.join(statistic)} for {', '.join(parameters)}",
            )
            for name, p in parameters.items():
                value = statistic[name]
                demand(
                    value.shape == p.shape,
                    f"{name} has shape {tuple(p.shape)}, its statistic {tuple(value.shape)}",
                )
                demand(value.dtype in DTYPES, f"{name}: found in {value.dtype}")
                demand(value.device == p.device, f"{name}: found on {value.device}")
                bad = int((~value.isfinite()).sum())
                demand(not bad, f"{name}: {bad} of {value.numel()} values are not finite")


def is_the_same_twice(subject: Under) -> None:
    """From one seed, whatever the global random states: it draws from its generator alone."""
    for dtype in DTYPES:
        first = _estimate(subject, network(dtype), [batch(dtype)])
        with elsewhere():
            second = _estimate(subject, network(dtype), [batch(dtype)])
        demand(same(dict(first), dict(second)), "differs when computed again from the same seed")


def the_engine_builds_the_same_statistic_from_the_options(subject: Under) -> None:
    """It does not call ``__init__``."""
    rebuilt = type(subject.component).from_options(subject.component.options)
    model, data = network(torch.float64), [batch(torch.float64)]
    first = _estimate(subject, model, data)
    second = _estimate(Subject(rebuilt, subject.manager), model, data)
    demand(same(dict(first), dict(second)), "differs when built from its options, without __init__")


def what_an_unused_parameter_gets_is_zero(subject: Under) -> None:
    """Or, of an inverse, one number throughout: what it makes of zero."""
    _needs_data(subject)
    statistic = _estimate(subject, _Idle().double(), [(torch.ones(3, 4).double(), torch.tensor([0, 1, 2]))])
    idle = statistic["idle.weight"]
    demand(bool(idle.isfinite().all()), "is not finite where a parameter is not used")
    demand(bool((idle == idle.flatten()[0]).all()), "is not zero where a parameter is not used")


def does_not_depend_on_how_batches_are_cut(subject: Under) -> None:
    """Sums and counts are accumulated; a mean of means would be wrong when the last batch is short."""
    x, y = batch(torch.float64)
    for sizes in ((5, 7), (1,) * EXAMPLES):
        parts, start = [], 0
        for size in sizes:
            parts.append((x[start : start + size], y[start : start + size]))
            start += size
        _same_statistic(subject, parts, f"batches of {', '.join(map(str, sizes))}")


def does_not_depend_on_the_order_of_the_examples(subject: Under) -> None:
    """Of the batches, nor within one."""
    x, y = batch(torch.float64)
    _same_statistic(subject, [(x[7:], y[7:]), (x[:7], y[:7])], "batches in another order")
    _same_statistic(subject, [(x.flip(0), y.flip(0))], "examples in another order")


def does_not_change_when_every_example_is_there_twice(subject: Under) -> None:
    """It is a mean."""
    data = batch(torch.float64)
    _same_statistic(subject, [data, data], "every example twice")


def does_not_depend_on_how_much_memory_there_is(subject: Under) -> None:
    """Where it takes slices of a batch."""
    try:
        _same_statistic(subject, [batch(torch.float64)], "little memory", memory=_LITTLE)
    except UnsupportedError as error:
        not_applicable(str(error))


def leaves_the_model_its_data_and_the_process_alone(subject: Under) -> None:
    """Parameters, buffers, gradients, modes, ``requires_grad``, hooks, random states."""
    for dtype in DTYPES:
        model, data = network(dtype), batch(dtype)
        first, *_, last = model.children()
        for parameter in first.parameters():
            parameter.grad = torch.ones_like(parameter)
        for parameter in last.parameters():
            parameter.requires_grad_(False)
        last.eval()
        with untouched(data, model):
            _estimate(subject, model, [data])


def leaves_the_model_and_the_process_alone_when_it_fails(subject: Under) -> None:
    """When the second batch cannot be read, or the network breaks down on it."""
    _needs_data(subject)
    data = batch(torch.float64)

    def batches() -> Iterator[Batch]:
        yield data
        raise Injected

    model = network(torch.float64)
    with untouched(data, model), failing():
        _estimate(subject, model, batches())
    model = _Breaking(network(torch.float64))
    with untouched(data, model), failing():
        _estimate(subject, model, [data, (data[0][:5] * 0, data[1][:5])])


def what_it_gives_is_its_own(subject: Under) -> None:
    """No view of the weights, which will change, nor of a batch that may be filled again."""
    model, data = network(torch.float64), batch(torch.float64)
    statistic = _estimate(subject, model, [data])
    for name, value in statistic.items():
        demand(not shares_memory(value, [*model.parameters(), *data]), f"{name}: is in memory that was lent")
        demand(not value.requires_grad, f"{name}: is still part of a graph")
    kept = {name: value.clone() for name, value in statistic.items()}
    again = _estimate(subject, network(torch.float64), [data])
    demand(same(dict(statistic), kept), "an estimate changes when another is made")
    demand(same(dict(again), kept), "differs when estimated again by the same object")


def check_tells_the_cost_in_words(subject: Under) -> None:
    """Or nothing, or refuses; with the layers alone."""
    model = network(torch.float64)
    layers = layers_of(model, prunable_parameters(model))
    with untouched():
        cost = subject.component.check(layers, DEFAULT_MEMORY)
    demand(cost is None or isinstance(cost, str), f"check returned {cost!r}, not a text or None")
    derived = subject.component.derive({})
    demand(derived is None or isinstance(derived, Mapping), "derive returned neither a statistic nor None")


CHECKS = (
    *common.CHECKS,
    gives_a_tensor_of_its_shape_for_each_parameter,
    is_the_same_twice,
    the_engine_builds_the_same_statistic_from_the_options,
    what_an_unused_parameter_gets_is_zero,
    does_not_depend_on_how_batches_are_cut,
    does_not_depend_on_the_order_of_the_examples,
    does_not_change_when_every_example_is_there_twice,
    does_not_depend_on_how_much_memory_there_is,
    leaves_the_model_its_data_and_the_process_alone,
    leaves_the_model_and_the_process_alone_when_it_fails,
    what_it_gives_is_its_own,
    check_tells_the_cost_in_words,
)


class _Idle(nn.Module):
    """Two layers, one of which does not reach the outputs."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.head, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(x)
        return outputs


class _Breaking(nn.Module):
    """A network that fails on inputs that are all zero."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if not bool(x.any()):
            raise Injected
        outputs: Tensor = self.inner(x)
        return outputs


def _model(dtype: torch.dtype, pruned: bool) -> nn.Module:
    model = network(dtype)
    if pruned:
        apply_masks(model, _masks(model))
    return model


def _masks(model: nn.Module) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(2)
    return {
        k: torch.rand(p.shape, generator=draw, dtype=torch.float64) >= 0.4
        for k, p in prunable_parameters(model).items()
    }


def _estimate(
    subject: Under,
    model: nn.Module,
    batches: Iterable[Batch],
    pruned: bool = False,
    seed: int = 0,
    memory: int | None = None,
) -> Found:
    loss: Loss = component("loss", "cross_entropy", subject.manager)
    estimated = estimate(
        model,
        batches,
        {"under test": subject.component},
        loss,
        prunable_parameters(model),
        generator(seed, "statistics", 0),
        memory,
        _masks(model) if pruned else None,
    )
    statistic: Found = estimated.statistics["under test"]
    return statistic


def _same_statistic(subject: Under, batches: Sequence[Batch], what: str, memory: int | None = None) -> None:
    """Compare with an estimate from all examples in one batch, to rounding."""
    _needs_data(subject)
    estimate_it = partial(_estimate, subject, network(torch.float64))
    expected = estimate_it([batch(torch.float64)])
    if not same(dict(expected), dict(estimate_it([batch(torch.float64)], seed=1))):
        not_applicable("draws: batches that are cut otherwise may draw otherwise")
    statistic = estimate_it(batches, memory=memory)
    for name, value in expected.items():
        scale = float(value.abs().max())
        error = float((statistic[name] - value).abs().max())
        demand(error <= 1e-6 * scale, f"{name}: differs by {error:.2g} of {scale:.2g} with {what}")


def _needs_data(subject: Under) -> None:
    if not subject.component.needs_data:
        not_applicable("needs no data")
