"""The trust region: steps stay whose prediction comes true, and the history alone decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunekit as pk
from prunekit.testing import SchedulerContract
from prunekit_plugins.schedulers.trust_region import TrustRegion


class TestTrustRegion(SchedulerContract):
    @pytest.fixture(params=["sparsity", "damping", "both"])
    def scheduler(self, request: pytest.FixtureRequest) -> TrustRegion:
        return TrustRegion(sparsity=0.6, adapt=request.param, measure="fresh")


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).double()


def draws(seed: int = 1) -> Any:
    """A function that draws other examples of one task at each call."""
    source = torch.Generator().manual_seed(seed)
    teacher = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def fresh() -> list[tuple[Tensor, Tensor]]:
        x = torch.randn(60, 12, generator=source, dtype=torch.float64)
        return [(x, (x @ teacher).argmax(1))]

    return fresh


def tried(
    sparsity: float, predicted: float | None, change: float, accepted: bool = False, **more: Any
) -> pk.Attempt:
    target = pk.Target(sparsity, damping=more.pop("damping", None))
    return pk.Attempt(
        1, target, sparsity, round(1000 * sparsity), 0.0, predicted, change, accepted=accepted, **more
    )


def asked(scheduler: TrustRegion, history: Sequence[pk.Attempt]) -> pk.Target:
    target = scheduler.next(history)
    assert target is not None
    return target


# -- which steps stay ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predicted", "change", "stays"),
    [
        (0.1, 0.1, True),
        (0.1, 0.159, True),  # 0.1 ± (0.01 + 0.5·0.1)
        (0.1, 0.161, False),
        (0.1, 0.041, True),
        (0.1, 0.039, False),
        (-0.1, -0.041, True),
        (-0.1, -0.039, False),
        (0.0, 0.0101, False),
        (0.1, math.nan, False),
        (0.1, math.inf, False),
    ],
)
def test_a_step_stays_within_the_tolerance_of_its_prediction(
    predicted: float, change: float, stays: bool
) -> None:
    scheduler = TrustRegion(sparsity=0.9, tolerance={"relative": 0.5, "absolute": 0.01})
    assert scheduler.accept(tried(0.5, predicted, change), []) is stays


def test_the_change_on_fresh_examples_is_compared_where_it_was_measured() -> None:
    scheduler = TrustRegion(sparsity=0.9, tolerance={"relative": 0.0, "absolute": 0.01})
    fitted = tried(0.5, -0.2, -0.2, measured={"fresh": {"delta_loss": 0.1}})
    assert not scheduler.accept(fitted, [])
    assert scheduler.accept(replace(fitted, measured={"fresh": {"delta_loss": -0.195}}), [])
    broken = replace(fitted, delta_loss=math.nan, measured={"fresh": {"delta_loss": -0.2}})
    assert not scheduler.accept(broken, [])


# -- how far the next one goes ------------------------------------------------------------------------------------


def test_a_step_taken_back_is_followed_by_a_shorter_one_and_one_that_came_true_by_a_longer_one() -> None:
    scheduler = TrustRegion(sparsity=0.99, tolerance={"relative": 0.0, "absolute": 0.01})
    first = asked(scheduler, [])
    assert first.sparsity == pytest.approx(0.5)
    shorter = asked(scheduler, [tried(0.5, 0.0, 0.1)])
    assert 0 < shorter.sparsity < 0.5
    again = asked(scheduler, [tried(0.5, 0.0, 0.1), tried(shorter.sparsity, 0.0, 0.1)])
    assert again.sparsity < shorter.sparsity
    longer = asked(scheduler, [tried(0.5, 0.0, 0.0001, accepted=True)])
    assert 1 - longer.sparsity < 0.5 * (1 - 0.5)  # more of what is left than before


def test_the_error_is_expected_to_grow_as_the_length_to_the_power_2_5() -> None:
    scheduler = TrustRegion(sparsity=0.99, tolerance={"relative": 0.0, "absolute": 0.01})
    for error in (0.012, 0.02, 0.05):
        found = asked(scheduler, [tried(0.5, 0.0, error)])
        expected = math.log(2) * min((0.5 * 0.01 / error) ** 0.4, 0.8)
        assert -math.log(1 - found.sparsity) == pytest.approx(expected)


@pytest.mark.parametrize("accepted", [True, False])
def test_no_step_is_longer_than_the_second_order_held_along_the_one_before(accepted: bool) -> None:
    """A third derivative of 6c leaves c·t³, which is half the tolerance at t = (tolerance / 2c)^⅓."""
    scheduler = TrustRegion(sparsity=0.99, tolerance={"relative": 0.0, "absolute": 0.01}, radius=True)
    found = {"derivative_1": 0.3, "derivative_2": 0.2, "derivative_3": 6 * 0.04, "derivative_4": 0.0}
    attempt = tried(0.5, 0.0, 0.0 if accepted else 0.011, accepted=accepted, measured={"radius": found})
    length = math.log(2) * (0.01 / 2 / 0.04) ** (1 / 3)
    here = 0.5 if accepted else 0.0
    assert asked(scheduler, [attempt]).sparsity == pytest.approx(1 - (1 - here) * math.exp(-length))
    for unknown in ({}, {**found, "derivative_4": None}, {**found, "derivative_4": math.nan}):
        without = replace(attempt, measured={"radius": unknown} if unknown else {})
        assert asked(scheduler, [without]).sparsity > asked(scheduler, [attempt]).sparsity


def test_the_radius_of_every_proposal_is_measured_and_the_history_alone_decides() -> None:
    options = {"tolerance": {"relative": 0.5, "absolute": 0.05}, "radius": True, "adapt": "both"}
    found = pk.prune(network(), draws(), "combinatorial", 0.8, scheduler={"name": "trust_region", **options})
    again = TrustRegion(sparsity=0.8, **options)
    for i, attempt in enumerate(found.attempts):
        assert attempt.measured["radius"]["derivative_3"] != 0
        assert again.next(found.attempts[:i]) == attempt.target
    assert again.next(found.attempts) is None


def test_it_ends_at_the_sparsity_asked_for_to_the_last_digit_with_two_steps_alike() -> None:
    scheduler = TrustRegion(sparsity=0.7, step={"start": 0.4}, tolerance={"absolute": 0.05})
    first = asked(scheduler, [])
    assert 1 - first.sparsity == pytest.approx(0.6)
    history = [tried(first.sparsity, 0.0, 0.0249, accepted=True)]  # at the aim: as long again
    second = asked(scheduler, history)
    left = -math.log(0.3 / 0.6)
    assert -math.log((1 - second.sparsity) / 0.6) == pytest.approx(left / 2)
    history.append(tried(second.sparsity, 0.0, 0.0249, accepted=True))
    assert asked(scheduler, history).sparsity == 0.7
    assert scheduler.next([*history, tried(0.7, 0.0, 0.0, accepted=True)]) is None
    assert scheduler.stopped([*history, tried(0.7, 0.0, 0.0, accepted=True)]) is None


# -- the damping --------------------------------------------------------------------------------------------------


def test_the_damping_falls_where_a_step_comes_true_on_its_own_examples_and_rises_where_it_does_not() -> None:
    scheduler = TrustRegion(sparsity=0.9, adapt="both", tolerance={"absolute": 0.05})
    assert asked(scheduler, []).damping == 0.1
    true, middling, untrue = (
        tried(0.5, -0.2, change, accepted=True, damping=0.1) for change in (-0.2, -0.1375, -0.1)
    )
    assert asked(scheduler, [true]).damping == pytest.approx(0.05)
    assert asked(scheduler, [middling]).damping == pytest.approx(
        0.1
    )  # a quarter of 0.2 + 0.05 has not come true
    assert asked(scheduler, [untrue]).damping == pytest.approx(0.15)
    limited = TrustRegion(sparsity=0.9, adapt="both", damping={"start": 0.1, "least": 0.08, "most": 0.12})
    assert asked(limited, [true]).damping == 0.08
    assert asked(limited, [untrue]).damping == 0.12


def test_a_step_taken_back_is_made_shorter_and_damped_more_if_it_fits_its_own_examples() -> None:
    scheduler = TrustRegion(sparsity=0.9, adapt="both", damping={"start": 0.1})
    long = asked(scheduler, [tried(0.5, -0.2, 1.0, damping=0.1, measured={"fresh": {"delta_loss": 1.0}})])
    fitted = asked(scheduler, [tried(0.5, -0.2, -0.2, damping=0.1, measured={"fresh": {"delta_loss": 1.0}})])
    assert (long.damping, fitted.damping) == (0.1, 0.2)
    assert max(long.sparsity, fitted.sparsity) < 0.5


def test_adapting_the_damping_alone_keeps_the_length() -> None:
    scheduler = TrustRegion(sparsity=0.9, adapt="damping", step={"start": 0.2})
    back = asked(scheduler, [tried(0.2, 0.0, 1.0, damping=0.1)])
    assert (back.sparsity, back.damping) == (pytest.approx(0.2), pytest.approx(0.2))
    on = asked(scheduler, [tried(0.2, 0.0, 0.0, accepted=True, damping=0.1)])
    assert on.sparsity == pytest.approx(1 - 0.8**2)


# -- where it gives up ----------------------------------------------------------------------------------------------


def test_a_limit_of_passes_stops_it_short_with_everything_kept() -> None:
    model = network()
    with pytest.raises(
        pk.ShortfallError, match=r"trust_region.*stopped short, at sparsity 0\.\d+: 2 passes"
    ) as caught:
        pk.prune(model, draws()(), "qm", 0.95, scheduler={"name": "trust_region", "passes": 2})
    done = caught.value.pruning
    assert done is not None
    assert len(done.steps) == 2
    assert 0 < done.sparsity < 0.95
    assert all(bool((model.get_parameter(n)[~m] == 0).all()) for n, m in done.masks.items())
    assert sum(int((~m).sum()) for m in done.masks.values()) == done.steps[-1].pruned
    assert "0.95 was asked for" in str(caught.value)


def test_a_step_that_cannot_come_true_however_short_stops_it_and_says_by_how_much_it_is_off() -> None:
    options = {"tolerance": {"relative": 0.0, "absolute": 1e-12}, "step": {"least": 0.1}}
    with pytest.raises(pk.ShortfallError, match=r"times the tolerance.*0.9 was asked for") as caught:
        pk.prune(network(), draws()(), "qm", 0.9, scheduler={"name": "trust_region", **options})
    done = caught.value.pruning
    assert done is not None
    assert done.sparsity == 0
    assert not any(attempt.accepted for attempt in done.attempts)


# -- with the engine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["lm", "qm", "obd", "obs_rows", "combinatorial"])
@pytest.mark.parametrize("adapt", ["sparsity", "both"])
def test_every_step_of_a_run_keeps_to_the_tolerance_and_the_run_ends_where_it_should(
    criterion: str, adapt: str
) -> None:
    tolerance = {"relative": 0.5, "absolute": 0.05}
    scheduler = {"name": "trust_region", "adapt": adapt, "tolerance": tolerance}
    found = pk.prune(network(), draws(), criterion, 0.8, scheduler=scheduler)
    total = 12 * 16 + 16 * 4
    assert found.steps[-1].pruned == round(0.8 * total)
    fresh = criterion in ("obs_rows", "combinatorial")
    for attempt in found.attempts:
        assert ("fresh" in attempt.measured) is fresh
        change = attempt.measured["fresh"]["delta_loss"] if fresh else attempt.delta_loss
        assert attempt.predicted_delta_loss is not None
        allowed = 0.05 + 0.5 * abs(attempt.predicted_delta_loss)
        assert attempt.accepted is (abs(change - attempt.predicted_delta_loss) <= allowed)
    again = TrustRegion(sparsity=0.8, adapt=adapt, tolerance=tolerance)
    for i, attempt in enumerate(found.attempts):  # the history alone decides
        assert again.next(found.attempts[:i]) == attempt.target
        assert again.accept(attempt, found.attempts[:i]) is attempt.accepted
    assert again.next(found.attempts) is None


def test_a_damping_set_by_the_scheduler_is_the_criterions_own_in_its_place() -> None:
    class Damped(pk.Scheduler):
        name = "damped"

        def next(self, history: Sequence[pk.Attempt]) -> pk.Target | None:
            return None if history else pk.Target(0.5, damping=0.7)

    for criterion in ("combinatorial", "obs_rows"):
        one, other = network(), network()
        pk.prune(one, draws()(), criterion, scheduler=Damped(), lam=5.0)
        options = {"name": criterion, "damping": 0.7}
        pk.prune(other, draws()(), options, 0.5, scheduler="one_shot")
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    one, other = network(), network()
    found = pk.prune(one, draws()(), "qm", scheduler=Damped())
    pk.prune(other, draws()(), "qm", 0.5, scheduler="one_shot", lam=0.7)
    assert found.attempts[0].lam == 0.7
    assert all(torch.equal(v, other.state_dict()[n]) for n, v in one.state_dict().items())


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "obc", "sparsegpt", "random", "snip"])
def test_criteria_that_predict_nothing_are_refused_before_anything_changes(criterion: str) -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(pk.SpecError, match=f"criterion '{criterion}' predicts none"):
        pk.prune(model, draws()(), criterion, 0.5, scheduler="trust_region")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_criterion_that_turns_out_to_predict_nothing_is_refused_and_its_step_taken_back() -> None:
    class Silent(pk.Criterion):
        name = "silent"

        def propose(self, context: pk.Context) -> pk.Proposal:
            return pk.Proposal(context.select({n: w.abs() for n, w in context.weights.items()}))

    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(pk.RunError, match="has predicted none at step 1"):
        pk.prune(model, draws()(), Silent(), 0.5, scheduler="trust_region")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_fresh_examples_are_asked_for_where_there_are_none() -> None:
    fixed, scheduler = draws()(), {"name": "trust_region", "measure": "fresh"}
    with pytest.raises(pk.SpecError, match="a function that draws its batches"):
        pk.prune(network(), fixed, "qm", 0.5, scheduler=scheduler)
    found = pk.prune(
        network(), fixed, "obs_rows", 0.5, scheduler="trust_region"
    )  # by default, where there are
    assert not any(attempt.measured for attempt in found.attempts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": {"relative": 0.0, "absolute": 0.0}}, "must be above 0"),
        ({"step": {"start": 0.5, "least": 0.6}}, "least ≤ start ≤ most"),
        ({"damping": {"start": 1.0, "most": 0.5}}, "least ≤ start ≤ most"),
        ({"passes": 0}, "passes"),
        ({"adapt": "λ"}, "adapt"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    scheduler = {"name": "trust_region", **options}
    with pytest.raises(pk.SpecError, match=message):
        pk.prune(network(), draws()(), "qm", 0.5, scheduler=scheduler)


@pytest.mark.parametrize("adapt", ["sparsity", "damping", "both"])
def test_it_gives_up_after_a_bounded_number_of_attempts_where_nothing_comes_true(adapt: str) -> None:
    scheduler = TrustRegion(sparsity=0.9, adapt=adapt)
    history: list[pk.Attempt] = []
    while (target := scheduler.next(history)) is not None:
        pruned = max(
            round(20 * target.sparsity), 1
        )  # of 20 weights, each of which is more than the least step
        history.append(pk.Attempt(1, target, pruned / 20, pruned, 0.0, 0.0, 9.0))
        assert len(history) < 100
    stop = scheduler.stopped(history)
    assert stop is not None
    assert stop.short


def test_every_step_prunes_a_weight_at_least() -> None:
    scheduler = TrustRegion(sparsity=0.9, step={"start": 0.01, "most": 0.02})
    half = pk.Attempt(1, pk.Target(0.5), 0.5, 10, 0.0, 0.0, 0.0, accepted=True)
    assert round(20 * asked(scheduler, [half]).sparsity) == 11


def test_a_network_that_is_pruned_further_than_the_first_target_goes_on_from_there() -> None:
    model = network()
    pk.prune(model, draws()(), "magnitude", 0.6, 1)
    with pytest.warns(pk.PrunekitWarning, match="zeros"):
        found = pk.prune(model, draws()(), "qm", 0.8, scheduler="trust_region")
    assert found.steps[0].pruned == round(0.6 * 256)
    assert found.steps[-1].pruned == round(0.8 * 256)


def test_a_sparsity_below_what_is_pruned_already_is_refused() -> None:
    model = network()
    pk.prune(model, draws()(), "magnitude", 0.6, 1)
    with pytest.raises(pk.SpecError, match="are pruned or zero already"):
        pk.prune(model, draws()(), "qm", 0.5, scheduler="trust_region")
