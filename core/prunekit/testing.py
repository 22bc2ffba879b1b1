"""Contract tests that plugins subclass; they need pytest.

Example::

    from prunekit.testing import CriterionContract

    class TestSquared(CriterionContract):
        @pytest.fixture
        def criterion(self):
            return Squared(power=2.0)
"""

# ruff: noqa: D102 (the names of the tests say what they check)

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from prunekit.component import Options
from prunekit.errors import UnsupportedError
from prunekit.masks.apply import apply_masks
from prunekit.masks.prunable import prunable_parameters
from prunekit.plugins.build import component, estimators
from prunekit.plugins.host import PluginManager, default_manager
from prunekit.pruning.criterion import Criterion
from prunekit.pruning.step import Pruner, saliencies
from prunekit.seeds import generator
from prunekit.statistics.estimate import estimate
from prunekit.statistics.request import Detailed, Estimates, Statistic

DTYPES = (torch.float32, torch.float64)
SPARSITIES = (0.0, 0.4)

Masks = dict[str, Tensor]


@dataclass
class Situation:
    """What a criterion meets at one step.

    Attributes:
        weights: Copies of the prunable weights, exactly zero where ``masks`` is False.
        statistics: What the criterion requires, computed by the engine at these weights.
        masks: What is kept now.
        proposed: Masks after the step: some more weights go.
    """

    weights: dict[str, Tensor]
    statistics: Estimates
    masks: Masks
    proposed: Masks

    def to(self, device: str) -> Situation:
        """A copy on another device."""
        return Situation(
            {k: w.to(device, copy=True) for k, w in self.weights.items()},
            Estimates({request: _copied(found, device) for request, found in self.statistics.items()}),
            {k: m.to(device, copy=True) for k, m in self.masks.items()},
            {k: m.to(device, copy=True) for k, m in self.proposed.items()},
        )

    def tensors(self) -> list[Tensor]:
        """Every tensor in it, copied."""
        tables = [self.weights, *self.statistics.values(), self.masks, self.proposed]
        return [t.clone() for table in tables for t in table.values()]


def _copied(found: Mapping[str, Tensor], device: str) -> Mapping[str, Tensor]:
    if isinstance(found, Detailed):
        return found.map(lambda t: t.to(device, copy=True))
    return {name: t.to(device, copy=True) for name, t in found.items()}


class CriterionContract:
    """What every criterion promises. Subclass it, and supply one ``criterion`` fixture.

    The criterion is used as the engine uses it: on a small convolutional network, with statistics that the
    engine computes, before the first step and after one, in float32 and float64. Optional methods
    (``predicted_delta_loss``, ``update``, ``select``) are tested where there are any.

    Override the fixture ``manager`` if the criterion requires a statistic that is not installed.
    """

    @pytest.fixture
    def criterion(self) -> Criterion:
        """The criterion under test."""
        raise NotImplementedError(f"{type(self).__name__} must define a fixture `criterion`")

    @pytest.fixture
    def manager(self) -> PluginManager:
        """Where the statistics are looked up; by default, everything that is installed."""
        return default_manager()

    @pytest.fixture(params=DTYPES, ids=str)
    def dtype(self, request: pytest.FixtureRequest) -> torch.dtype:
        """Of the network."""
        found: torch.dtype = request.param
        return found

    @pytest.fixture(params=SPARSITIES, ids=["unpruned", "pruned"])
    def situation(
        self,
        criterion: Criterion,
        manager: PluginManager,
        dtype: torch.dtype,
        request: pytest.FixtureRequest,
    ) -> Situation:
        """What the criterion is given."""
        return situation(criterion, manager, dtype, request.param)

    # -- what it is ---------------------------------------------------------------------------------

    def test_has_a_name(self, criterion: Criterion) -> None:
        assert isinstance(criterion.name, str)
        assert criterion.name
        assert criterion.kind == "criterion"

    def test_options_are_typed_and_frozen_and_refuse_unknown_keys(self, criterion: Criterion) -> None:
        cls = type(criterion)
        assert issubclass(cls.Options, Options), "Options must be a subclass of prunekit.Options"
        assert isinstance(criterion.options, cls.Options)
        untyped = [k for k, f in cls.Options.model_fields.items() if f.annotation in (None, Any)]
        assert not untyped, f"options without a type: {untyped}"
        with pytest.raises(ValidationError):
            cls.Options.model_validate({**criterion.options.model_dump(), "no_such_option": 1})
        for key in cls.Options.model_fields:
            with pytest.raises(ValidationError):
                setattr(criterion.options, key, getattr(criterion.options, key))

    def test_options_survive_the_results_file(self, criterion: Criterion) -> None:
        text = criterion.options.model_dump_json()
        assert type(criterion).Options.model_validate_json(text) == criterion.options

    def test_required_statistics_exist(self, criterion: Criterion, manager: PluginManager) -> None:
        assert isinstance(criterion.requires, frozenset), "requires must be a frozenset"
        for request in criterion.requires:
            assert isinstance(request, str | Statistic), f"{request!r} is neither a name nor a Statistic"
        assert set(estimators(criterion.requires, manager)) == set(criterion.requires)

    def test_locality_weight_is_left_to_the_engine(self, criterion: Criterion) -> None:
        assert "lam" not in type(criterion).Options.model_fields
        assert "lambda" not in type(criterion).Options.model_fields
        assert isinstance(criterion.damps, bool)
        assert math.isfinite(criterion.lam)
        assert criterion.lam >= 0

    # -- saliency -----------------------------------------------------------------------------------

    def test_saliency_has_the_weights_names_shapes_and_device(
        self, criterion: Criterion, situation: Situation
    ) -> None:
        found = _saliency(criterion, situation)
        assert set(found) == set(situation.weights)
        for name, w in situation.weights.items():
            assert found[name].shape == w.shape, name
            assert found[name].device == w.device, name
            assert found[name].is_floating_point(), name

    def test_saliency_is_finite(self, criterion: Criterion, situation: Situation) -> None:
        for name, value in _saliency(criterion, situation).items():
            assert bool(torch.isfinite(value[situation.masks[name]]).all()), name

    def test_saliency_is_finite_where_a_whole_layer_is_zero(
        self, criterion: Criterion, situation: Situation
    ) -> None:
        name = next(iter(situation.weights))
        situation.weights[name].zero_()
        found = _saliency(criterion, situation)
        assert bool(torch.isfinite(found[name][situation.masks[name]]).all()), name

    def test_saliency_leaves_its_inputs_and_the_process_alone(
        self, criterion: Criterion, situation: Situation
    ) -> None:
        _unchanged(situation, lambda: _saliency(criterion, situation))

    def test_saliency_leaves_its_inputs_and_the_process_alone_when_it_fails(
        self, criterion: Criterion, situation: Situation
    ) -> None:
        _saliency(criterion, situation)  # there is one

        def fail() -> None:
            weights, statistics = _Broken(situation.weights), _broken(situation.statistics)
            with pytest.raises(_BrokenError):
                criterion.saliency(weights, statistics)

        _unchanged(situation, fail)

    def test_saliency_is_deterministic(self, criterion: Criterion, situation: Situation) -> None:
        first = _saliency(criterion, situation)
        first = {k: v.clone() for k, v in first.items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(20240229)
            second = _saliency(criterion, situation)
        for name, value in first.items():
            assert torch.equal(value, second[name]), f"{name}: differs when called again with another seed"

    def test_the_engine_builds_the_same_criterion_from_the_options(
        self, criterion: Criterion, situation: Situation
    ) -> None:
        rebuilt = type(criterion).from_options(criterion.options)  # does not call __init__
        rebuilt.lam = criterion.lam
        assert rebuilt.requires == criterion.requires
        again = _saliency(rebuilt, situation)
        for name, value in _saliency(criterion, situation).items():
            assert torch.equal(value, again[name]), name

    def test_saliency_is_the_same_on_cuda(self, criterion: Criterion, manager: PluginManager) -> None:
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        here = situation(criterion, manager, torch.float64, 0.4)
        there = here.to("cuda")
        expected, found = _saliency(criterion, here), _saliency(criterion, there)
        for name, value in expected.items():
            assert found[name].device.type == "cuda", name
            torch.testing.assert_close(found[name].cpu(), value)

    # -- optional methods ---------------------------------------------------------------------------

    def test_predicted_delta_loss_is_a_finite_number_or_none(
        self, criterion: Criterion, manager: PluginManager
    ) -> None:
        predict = _optional(criterion, "predicted_delta_loss")
        for given in _every(criterion, manager):
            found = _unchanged(given, partial(predict, given.weights, given.statistics, given.proposed))
            if found is not None:
                assert isinstance(found, float | int)
                assert math.isfinite(found)
                assert predict(given.weights, given.statistics, given.proposed) == found

    def test_predicted_delta_loss_of_no_change_is_zero(
        self, criterion: Criterion, manager: PluginManager
    ) -> None:
        predict = _optional(criterion, "predicted_delta_loss")
        if hasattr(criterion, "update"):
            pytest.skip("an update can change the surviving weights even if none goes")
        for given in _every(criterion, manager):
            found = predict(given.weights, given.statistics, given.masks)
            assert found is None or found == pytest.approx(0.0, abs=1e-12)

    def test_update_gives_finite_values_for_the_surviving_weights(
        self, criterion: Criterion, manager: PluginManager
    ) -> None:
        update = _optional(criterion, "update")
        for given in _every(criterion, manager):
            found = _unchanged(given, partial(update, given.weights, given.statistics, given.proposed)) or {}
            assert set(found) <= set(given.weights)
            for name, value in found.items():
                assert value.shape == given.weights[name].shape, name
                assert value.device == given.weights[name].device, name
                # What stands where a weight goes does not matter; the engine writes zeros there.
                assert bool(torch.isfinite(value[given.proposed[name]]).all()), name

    def test_update_is_deterministic(self, criterion: Criterion, manager: PluginManager) -> None:
        update = _optional(criterion, "update")
        for given in _every(criterion, manager):
            first = update(given.weights, given.statistics, given.proposed) or {}
            first = {k: v.clone() for k, v in first.items()}
            second = update(given.weights, given.statistics, given.proposed) or {}
            for name, value in first.items():
                kept = given.proposed[name]
                assert torch.equal(value[kept], second[name][kept]), name

    def test_select_gives_nested_masks_of_the_exact_budget(
        self, criterion: Criterion, manager: PluginManager
    ) -> None:
        select = _optional(criterion, "select")
        for given in _every(criterion, manager):
            total = sum(m.numel() for m in given.masks.values())
            already = sum(int((~m).sum()) for m in given.masks.values())
            for budget in (already, already + 1, (already + total) // 2, total - 1):
                found = _unchanged(
                    given, partial(select, given.weights, given.statistics, given.masks, budget)
                )
                assert set(found) == set(given.masks)
                for name, old in given.masks.items():
                    assert found[name].dtype == torch.bool, name
                    assert found[name].shape == old.shape, name
                    assert found[name].device == old.device, name
                    assert not bool((found[name] & ~old).any()), f"{name}: revives pruned weights"
                assert sum(int((~m).sum()) for m in found.values()) == budget

    # -- all of it ----------------------------------------------------------------------------------

    def test_prunes_a_network_and_leaves_the_rest_of_it_alone(
        self, criterion: Criterion, manager: PluginManager, dtype: torch.dtype
    ) -> None:
        model, loss = network(dtype), component("loss", "cross_entropy", manager)
        before = copy.deepcopy(model.state_dict())
        selector = component("selector", "global", manager)
        pruner = Pruner(model, loss, criterion, [0.3, 0.8], selector, manager=manager)
        surroundings, hooks = _Surroundings(), _hooks(model)
        records = [pruner.step(i, [batch(dtype)], generator(0, "statistics", i)) for i in range(2)]
        surroundings.check()
        assert _hooks(model) == hooks, "hooks are left on the model"
        assert all(p.grad is None for p in model.parameters())
        assert all(p.requires_grad for p in model.parameters())
        assert model.training
        assert [r.pruned for r in records] == [round(level * pruner.total) for level in (0.3, 0.8)]
        assert math.isfinite(records[-1].delta_loss)
        for name, value in model.state_dict().items():
            if name in pruner.masks:
                assert not bool(value[~pruner.masks[name]].any()), f"{name}: a pruned weight is not zero"
            else:
                assert torch.equal(value, before[name]), f"{name}: is not prunable and has changed"


def network(dtype: torch.dtype) -> nn.Module:
    """A small network with a convolution, a norm and two linear layers, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(48, 5, bias=False),
            nn.ReLU(),
            nn.Linear(5, 4),
        )
    return model.to(dtype)


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Twelve examples for :func:`network`."""
    source = torch.Generator().manual_seed(1)
    inputs = torch.randn(12, 2, 4, 4, generator=source, dtype=torch.float64)
    return inputs.to(dtype), torch.randint(4, (12,), generator=source)


def situation(criterion: Criterion, manager: PluginManager, dtype: torch.dtype, sparsity: float) -> Situation:
    """Prune :func:`network` at random, and compute what the criterion requires there."""
    return _situation(frozenset(criterion.requires), manager, dtype, sparsity).to("cpu")


@lru_cache(maxsize=64)
def _situation(
    requires: frozenset[str | Statistic], manager: PluginManager, dtype: torch.dtype, sparsity: float
) -> Situation:
    model, loss = network(dtype), component("loss", "cross_entropy", manager)
    parameters = prunable_parameters(model)
    draw = torch.Generator().manual_seed(2)
    order = {k: torch.rand(p.shape, generator=draw) for k, p in parameters.items()}
    masks = {k: r >= sparsity for k, r in order.items()}
    proposed = {k: r >= sparsity + 0.2 for k, r in order.items()}
    apply_masks(model, masks)
    source = generator(0, "statistics", 0)
    found = estimate(
        model, [batch(dtype)], estimators(requires, manager), loss, parameters, source, masks=masks
    )
    weights = {name: p.detach().clone() for name, p in parameters.items()}
    return Situation(weights, found.statistics, masks, proposed)


def _every(criterion: Criterion, manager: PluginManager) -> list[Situation]:
    return [situation(criterion, manager, dtype, sparsity) for dtype in DTYPES for sparsity in SPARSITIES]


def _saliency(criterion: Criterion, given: Situation) -> dict[str, Tensor]:
    try:
        found = criterion.saliency(given.weights, given.statistics)
    except UnsupportedError:
        if not hasattr(criterion, "select"):
            raise
        pytest.skip("selects jointly and has no saliency")
    saliencies(criterion, given.weights, given.statistics, given.masks)  # the engine's own checks
    return dict(found)


def _optional(criterion: Criterion, method: str) -> Callable[..., Any]:
    found: Callable[..., Any] | None = getattr(criterion, method, None)
    if found is None:
        pytest.skip(f"criterion {criterion.name!r} has no {method}")
    return found


def _unchanged(given: Situation, action: Callable[[], Any]) -> Any:
    """Do something, and check that it left its inputs and the process as they were."""
    before, surroundings = given.tensors(), _Surroundings()
    result = action()
    surroundings.check()
    for old, new in zip(before, given.tensors(), strict=True):
        assert torch.equal(old, new), "an input was changed"
    return result


class _Surroundings:
    """Global state that a criterion could disturb."""

    def __init__(self) -> None:
        self._before = self._now()

    def check(self) -> None:
        for what, value in self._now().items():
            assert _same(value, self._before[what]), f"{what} was changed"

    @staticmethod
    def _now() -> dict[str, Any]:
        now: dict[str, Any] = {
            "torch's random state": torch.get_rng_state(),
            "numpy's random state": np.random.get_state(legacy=True),
            "Python's random state": random.getstate(),
            "the grad mode": torch.is_grad_enabled(),
            "the default dtype": torch.get_default_dtype(),
            "the set of global hooks": _global_hooks(),
        }
        if torch.cuda.is_available():
            now["CUDA's random state"] = torch.cuda.get_rng_state()
        return now


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    return bool(a == b)


def _global_hooks() -> list[int]:
    return [
        id(hook) for name, table in sorted(vars(nn.modules.module).items()) for hook in _values(name, table)
    ]


def _hooks(model: nn.Module) -> list[int]:
    modules = [h for m in model.modules() for name, table in vars(m).items() for h in _values(name, table)]
    tensors = [h for p in model.parameters() for h in (p._backward_hooks or {}).values()]
    return [id(h) for h in (*modules, *tensors)]


def _values(name: str, table: Any) -> list[Any]:
    return list(table.values()) if name.endswith("_hooks") and isinstance(table, dict) else []


class _BrokenError(Exception):
    """Raised by :class:`_Broken`; a criterion has no reason to catch it."""


class _Broken(Mapping[str, Tensor]):
    """A mapping of tensors that fails after the first."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._first = next(iter(tensors), None)

    def __getitem__(self, name: str) -> Tensor:
        if name != self._first:
            raise _BrokenError
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensors, name)  # what a detailed statistic has beside its tensors


def _broken(statistics: Estimates) -> Estimates:
    return Estimates({request: _Broken(found) for request, found in statistics.items()})
