"""The contract test notices criteria that break their promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import prunekit as pk
from prunekit.plugins.host import default_manager
from prunekit.testing import CriterionContract, situation


class Good(pk.Criterion):
    name = "good"
    requires = frozenset({"gradient"})

    def saliency(self, weights: Any, statistics: Any) -> Any:
        return {k: (w * statistics["gradient"][k]).abs() for k, w in weights.items()}


def variant(**attributes: Any) -> pk.Criterion:
    """The good criterion with some attributes replaced."""
    return type("Bad", (Good,), attributes)()


def saliency(formula: Callable[[Any, Any], Any]) -> pk.Criterion:
    return variant(
        saliency=lambda self, weights, statistics: {
            k: formula(w, statistics["gradient"][k]) for k, w in weights.items()
        }
    )


def zeroing(w: Any, g: Any) -> Any:
    w.zero_()
    return g.abs()


def tidying_up_late(self: Any, weights: Any, statistics: Any) -> Any:
    first = next(iter(weights.values()))
    first.add_(1)
    found = {k: w.abs() for k, w in weights.items()}
    first.sub_(1)
    return found


class OptionsFromAnotherFamily(pk.Options):
    power: Any = 2.0


def built_in_init(self: Any, **options: Any) -> None:
    Good.__init__(self, **options)
    self.factor = 2.0


BROKEN = {
    "no name": (variant(name=""), "test_has_a_name"),
    "untyped option": (
        variant(Options=OptionsFromAnotherFamily),
        "test_options_are_typed_and_frozen_and_refuse_unknown_keys",
    ),
    "requires a list": (variant(requires=["gradient"]), "test_required_statistics_exist"),
    "unknown statistic": (variant(requires=frozenset({"gradientt"})), "test_required_statistics_exist"),
    "own lambda": (variant(lam=-1.0), "test_locality_weight_is_left_to_the_engine"),
    "wrong shape": (saliency(lambda w, g: g.sum()), "test_saliency_has_the_weights_names_shapes_and_device"),
    "no names": (
        variant(saliency=lambda self, w, s: {}),
        "test_saliency_has_the_weights_names_shapes_and_device",
    ),
    "not finite": (saliency(lambda w, g: g / (w - w)), "test_saliency_is_finite"),
    "normalised by zero": (
        saliency(lambda w, g: w.abs() / w.norm()),
        "test_saliency_is_finite_where_a_whole_layer_is_zero",
    ),
    "in place": (saliency(zeroing), "test_saliency_leaves_its_inputs_and_the_process_alone"),
    "global random state": (
        saliency(lambda w, g: torch.rand_like(w)),
        "test_saliency_leaves_its_inputs_and_the_process_alone",
    ),
    "in place on error": (
        variant(saliency=tidying_up_late),
        "test_saliency_leaves_its_inputs_and_the_process_alone_when_it_fails",
    ),
    "random": (saliency(lambda w, g: torch.rand_like(w)), "test_saliency_is_deterministic"),
    "needs its __init__": (
        variant(
            __init__=built_in_init,
            saliency=lambda self, w, s: {k: self.factor * v.abs() for k, v in w.items()},
        ),
        "test_the_engine_builds_the_same_criterion_from_the_options",
    ),
    "predicts NaN": (
        variant(predicted_delta_loss=lambda self, w, s, m: float("nan")),
        "test_predicted_delta_loss_is_a_finite_number_or_none",
    ),
    "predicts a change for nothing": (
        variant(predicted_delta_loss=lambda self, w, s, m: 1.0),
        "test_predicted_delta_loss_of_no_change_is_zero",
    ),
    "updates to NaN": (
        variant(update=lambda self, w, s, m: {k: v / 0 for k, v in w.items()}),
        "test_update_gives_finite_values_for_the_surviving_weights",
    ),
    "updates what is not there": (
        variant(update=lambda self, w, s, m: {"elsewhere": torch.zeros(1)}),
        "test_update_gives_finite_values_for_the_surviving_weights",
    ),
    "random update": (
        variant(update=lambda self, w, s, m: {k: torch.rand_like(v) for k, v in w.items()}),
        "test_update_is_deterministic",
    ),
    "ignores the budget": (
        variant(select=lambda self, w, s, m, budget: dict(m)),
        "test_select_gives_nested_masks_of_the_exact_budget",
    ),
    "revives": (
        variant(select=lambda self, w, s, m, budget: {k: ~v for k, v in m.items()}),
        "test_select_gives_nested_masks_of_the_exact_budget",
    ),
}


def check(criterion: pk.Criterion, test: str) -> None:
    arguments: dict[str, Any] = {
        "criterion": criterion,
        "manager": default_manager(),
        "dtype": torch.float64,
    }
    method = getattr(CriterionContract(), test)
    names = method.__code__.co_varnames[1 : method.__code__.co_argcount]
    if "situation" in names:
        arguments["situation"] = situation(criterion, default_manager(), torch.float64, 0.4)
    with torch.random.fork_rng():
        method(**{name: arguments[name] for name in names})


@pytest.mark.parametrize("broken", BROKEN)
def test_a_criterion_that_breaks_a_promise_fails_its_test(broken: str) -> None:
    criterion, test = BROKEN[broken]
    with pytest.raises((AssertionError, AttributeError, pk.PrunekitError, pytest.fail.Exception)):
        check(criterion, test)


@pytest.mark.parametrize("test", sorted({test for _, test in BROKEN.values()}))
def test_a_criterion_that_keeps_its_promises_passes(test: str) -> None:
    def select(self: Any, weights: Any, statistics: Any, masks: Any, budget: int) -> Any:
        from prunekit.masks.select import prune_smallest

        return prune_smallest(self.saliency(weights, statistics), masks, budget)

    whole = variant(
        predicted_delta_loss=lambda self, w, s, m: sum(float(w[k][~m[k]].sum()) for k in w),
        update=lambda self, w, s, m: {k: 2 * v / m[k] for k, v in w.items()},  # inf where a weight goes
        select=select,
    )
    try:
        check(whole, test)
    except pytest.skip.Exception:
        del type(whole).update
        check(whole, test)


def test_a_missing_fixture_is_told() -> None:
    fixture = CriterionContract.criterion
    function = getattr(fixture, "__wrapped__", None) or fixture.__pytest_wrapped__.obj
    with pytest.raises(NotImplementedError, match="must define a fixture `criterion`"):
        function(CriterionContract())
