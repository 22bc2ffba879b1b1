"""A step that does not stay leaves nothing behind, and what a scheduler decides depends on the history alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import adaptive
import pytest
import torch
from torch import Tensor, nn

import prunekit as pk
from prunekit.observing.moment import Surroundings
from prunekit.plugins.build import as_loss, component, estimators
from prunekit.pruning import sample as sampling
from prunekit.pruning.sample import Sample
from prunekit.pruning.step import Pruner


def counted_passes(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """What is asked of each pass over the data from now on."""
    passes: list[list[Any]] = []
    original = sampling.estimate

    def counted(*arguments: Any) -> Any:
        passes.append(list(arguments[2]))
        return original(*arguments)

    monkeypatch.setattr(sampling, "estimate", counted)
    return passes


SURVIVORS_STAY = ("lm", "qm", "magnitude", "random")
SURVIVORS_MOVE = ("obs", "obs_rows", "combinatorial", "obc", "sparsegpt")


pytestmark = pytest.mark.usefixtures("adaptive_plugins")


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 4)
        )
    return model.double()


def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(24, 1, 6, 6, generator=draw, dtype=torch.float64)
    y = torch.randint(4, (24,), generator=draw)
    return [(x[:16], y[:16]), (x[16:], y[16:])]


def pruner(model: nn.Module, criterion: Any, scheduler: pk.Scheduler, lam: float = 0.0) -> Pruner:
    surroundings = Surroundings(model, as_loss("cross_entropy"), estimators)
    chosen = component("criterion", criterion)
    return Pruner(surroundings, chosen, scheduler, component("selector", "global"), lam)


def fresh_sample(index: int) -> Sample:
    return Sample(batches(), torch.Generator().manual_seed(index))


@pytest.mark.parametrize("criterion", [*SURVIVORS_STAY, *SURVIVORS_MOVE])
def test_an_attempt_that_is_taken_back_leaves_every_bit_as_it_was(criterion: str) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    taken_back = 0
    one = pruner(model, criterion, adaptive.EveryOther(steps=3))
    for outcome in one.outcomes(fresh_sample):
        if outcome.attempt.accepted:
            before = copy.deepcopy(model.state_dict())
            masks = {name: mask.clone() for name, mask in one.masks.items()}
        else:
            taken_back += 1
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
            if taken_back > 1:
                assert all(torch.equal(mask, masks[name]) for name, mask in one.masks.items())
    assert taken_back == 3


@pytest.mark.parametrize("criterion", [*SURVIVORS_STAY, *SURVIVORS_MOVE])
def test_a_run_with_attempts_taken_back_ends_as_one_without(criterion: str) -> None:
    plain, trying = network(), network()
    expected = pk.prune(plain, batches(), criterion, 0.75, 3, scheduler="linear")
    found = pk.prune(trying, batches(), criterion, scheduler=adaptive.EveryOther(steps=3))
    assert [a.accepted for a in found.attempts] == [False, True] * 3
    for one, other in zip(expected.steps, found.steps, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    for name, value in plain.state_dict().items():
        assert torch.equal(value, trying.state_dict()[name]), name
    for first, second in zip(found.attempts[::2], found.attempts[1::2], strict=True):
        assert (first.predicted_delta_loss, first.delta_loss) == (
            second.predicted_delta_loss,
            second.delta_loss,
        )


@pytest.mark.parametrize("criterion", ["qm", "obs"])
def test_attempts_of_a_step_share_its_sample_and_statistics(
    criterion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = counted_passes(monkeypatch)
    drawn: list[int] = []

    def fresh() -> list[tuple[Tensor, Tensor]]:
        drawn.append(len(drawn))
        return batches()

    pk.prune(network(), fresh, criterion, scheduler=adaptive.EveryOther(steps=3))
    assert len(passes) == 3
    assert len(drawn) == 3


def test_another_lambda_changes_the_attempt_and_is_recorded() -> None:
    found = pk.prune(network(), batches(), "qm", scheduler=adaptive.Tightening(steps=2))
    assert [attempt.lam for attempt in found.attempts] == [0.0, 0.1, 0.0, 0.1]
    once = network()
    expected = pk.prune(once, batches(), "qm", 0.375, 1, scheduler="one_shot", lam=0.1)
    assert found.attempts[1].predicted_delta_loss == expected.steps[0].predicted_delta_loss


@pytest.mark.parametrize("criterion", ["obs", "obs_rows", "obs_block", "obs_kfac", "obc", "combinatorial"])
def test_another_lambda_of_a_damped_criterion_needs_no_new_pass_and_gives_what_one_would(
    criterion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = counted_passes(monkeypatch)
    trying, once = network(), network()
    found = pk.prune(trying, batches(), criterion, scheduler=adaptive.Tightening(steps=1))
    assert len(passes) == 1
    expected = pk.prune(once, batches(), criterion, 0.75, 1, scheduler="one_shot", lam=0.1)
    assert found.attempts[1].predicted_delta_loss == expected.steps[0].predicted_delta_loss
    for name, value in once.state_dict().items():
        assert torch.equal(value, trying.state_dict()[name]), name


def test_a_scheduler_sees_a_loss_that_is_not_finite_and_may_go_on_smaller() -> None:
    model = network()
    found = pk.prune(model, batches(), "too_far", scheduler=adaptive.Halving(sparsity=0.6))
    assert not found.attempts[0].accepted
    assert not abs(found.attempts[0].delta_loss) < float("inf")
    assert found.attempts[-1].accepted
    assert found.sparsity == pytest.approx(0.6, abs=0.01)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_step_whose_loss_is_not_finite_cannot_stay_and_leaves_the_model_as_it_was() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(pk.RunError, match=r"step 1: the loss is (nan|inf) after it"):
        pk.prune(model, batches(), "too_far", 0.6, 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_failure_while_measuring_takes_the_step_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit.pruning import step

    def fail(*_: Any) -> Any:
        raise KeyboardInterrupt

    model = network()
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(step, "measure", fail)
    with pytest.raises(KeyboardInterrupt):
        pk.prune(model, batches(), "lm", 0.5, 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_history_alone_decides() -> None:
    seen: list[tuple[Any, ...]] = []

    class Watching(adaptive.Tightening):
        name = "watching"

        def accept(self, attempt: pk.Attempt, history: Sequence[pk.Attempt]) -> bool:
            seen.append(tuple(history))
            return super().accept(attempt, history)

    found = pk.prune(network(), batches(), "lm", scheduler=Watching(steps=3))
    assert [len(history) for history in seen] == list(range(6))
    assert seen[-1] == tuple(found.attempts[:-1])
    again = adaptive.Tightening(steps=3)
    for i, attempt in enumerate(found.attempts):  # replayed without any network
        history = found.attempts[:i]
        assert again.next(history) == attempt.target
        assert again.accept(attempt, history) == attempt.accepted
    assert again.next(found.attempts) is None


def test_what_a_scheduler_needs_is_measured_before_the_step_is_applied() -> None:
    found = pk.prune(network(), batches(), "qm", scheduler=adaptive.Careful(steps=2))
    for attempt in found.attempts:
        measured = attempt.measured["size"]
        assert measured["before"] == measured["now"]
        assert measured["norm"] > 0
    first, second = found.attempts[:2]
    assert first.measured == second.measured


def test_a_probe_that_is_not_there_is_refused_by_name_before_anything_is_pruned() -> None:
    class Demanding(adaptive.EveryOther):
        name = "demanding"
        needs = frozenset({"no_such_probe"})

    model = network()
    with pytest.raises(pk.PluginError, match="no_such_probe"):
        pk.prune(model, batches(), "lm", scheduler=Demanding())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (pk.Target(1.0), "outside"),
        (pk.Target(0.1), "pruned already"),
        (pk.Target(0.6, lam=-1.0), "finite number >= 0"),
    ],
)
def test_a_target_that_cannot_be_is_refused_with_the_schedulers_name(target: pk.Target, message: str) -> None:
    class Wild(pk.Scheduler):
        name = "wild"

        def next(self, history: Sequence[pk.Attempt]) -> pk.Target | None:
            return target if history else pk.Target(0.5)

    with pytest.raises(pk.RunError, match=f"scheduler 'wild'.*{message}"):
        pk.prune(network(), batches(), "lm", scheduler=Wild())


def test_a_criterion_of_the_old_form_is_refused_by_name_with_where_to_read_on() -> None:
    class Old(pk.Criterion):
        name = "old"

        def select(self, weights: Any, statistics: Any, masks: Any, budget: int) -> Any:
            return masks

        def saliency(self, weights: Any, statistics: Any) -> Any:
            return weights

    with pytest.raises(pk.SpecError, match=r"criterion 'old' defines `select`.*propose.*docs/plugins.md"):
        pk.prune(network(), batches(), Old(), 0.5)


def test_a_selector_of_the_old_form_is_refused_by_name_with_where_to_read_on() -> None:
    class Old(pk.Selector):
        name = "old"

        def select(self, saliency: Any, masks: Any, budget: int) -> Any:
            return masks

    with pytest.raises(pk.SpecError, match=r"selector 'old' has `select\(saliency.*docs/plugins.md"):
        pk.prune(network(), batches(), "lm", 0.5, selector=Old())


def test_a_proposal_that_breaks_its_promises_is_refused_before_it_is_applied() -> None:
    class Broken(pk.Criterion):
        name = "broken"

        class Options(pk.Options):
            how: str

        def propose(self, context: pk.Context) -> pk.Proposal:
            masks = {name: mask.clone() for name, mask in context.masks.items()}
            first = next(iter(masks))
            values, predicted = {}, 0.0
            if self.options.how == "budget":
                masks[first].view(-1)[0] = False
            else:
                masks = context.select({name: w.abs() for name, w in context.weights.items()})
            if self.options.how == "values":
                values = {first: torch.full_like(context.weights[first], float("nan"))}
            if self.options.how == "shape":
                values = {first: torch.zeros(2)}
            if self.options.how == "predicted":
                predicted = float("inf")
            if self.options.how == "missing":
                del masks[first]
            return pk.Proposal(masks, values, predicted)

    for how, message in {
        "budget": "prunes 1 weights",
        "values": "0.weight is not finite",
        "shape": "0.weight of shape",
        "predicted": "not finite",
        "missing": "no mask for 0.weight",
    }.items():
        model = network()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(pk.RunError, match=message):
            pk.prune(model, batches(), Broken(how=how), 0.5, 1)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), how
