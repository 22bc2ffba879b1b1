"""Pruning as far as a metric holds: with any scheduler, in a run and in Python."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import adaptive
import pytest
import running
import torch
from torch import Tensor, nn

import prunekit as pk
from prunekit.pruning.until import Until, limited

LEVELS = {"name": "linear", "steps": 10}


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
        optimizer.step()
    return model


def batches(seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(400, 8, generator=draw, dtype=torch.float64)
    return [(x, (x[:, :3] - x[:, 3:6] + x[:, 6:].sum(1, keepdim=True) * x[:, :3]).argmax(1))]


def error(model: nn.Module) -> float:
    x, y = batches(2)[0]
    with torch.no_grad():
        return float((model(x).argmax(1) != y).double().mean())


def loss(model: nn.Module) -> float:
    x, y = batches(2)[0]
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(x), y))


@pytest.mark.parametrize(("metric", "measured"), [("valid_error", error), ("valid_loss", loss)])
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_it_goes_on_while_the_metric_holds_and_takes_the_step_back_that_broke_it(
    metric: str, measured: Any, relative: bool
) -> None:
    model = network()
    start = measured(model)
    until = {"metric": metric, "rise": 0.2 if relative else 0.05, "relative": relative}
    limit = start * 1.2 if relative else start + 0.05
    found = pk.prune(model, batches(), "qm", 0.95, scheduler=LEVELS, until=until, valid=batches(2))
    assert 0 < len(found.steps) < 10
    assert measured(model) <= limit
    assert [a.accepted for a in found.attempts] == [True] * len(found.steps) + [False]
    again = network()  # one step further, and it would not hold
    levels = [0.95 * i / 10 for i in range(1, len(found.steps) + 2)]
    pk.prune(again, batches(), "qm", scheduler={"name": "explicit", "levels": levels})
    assert measured(again) > limit
    assert found.stopped is not None
    assert metric in found.stopped
    assert f"{found.sparsity:.6g}" in found.stopped


def test_what_was_kept_is_bit_for_bit_what_as_many_steps_without_a_limit_give() -> None:
    one, other = network(), network()
    until = {"metric": "valid_error", "rise": 0.05}
    found = pk.prune(one, batches(), "obs_rows", 0.95, scheduler=LEVELS, until=until, valid=batches(2))
    levels = [0.95 * i / 10 for i in range(1, len(found.steps) + 1)]
    pk.prune(other, batches(), "obs_rows", scheduler={"name": "explicit", "levels": levels})
    assert all(torch.equal(v, other.state_dict()[n]) for n, v in one.state_dict().items())


def test_bisecting_the_last_step_goes_further_and_still_holds() -> None:
    def pruned(bisect: int) -> pk.Pruning:
        until = {"metric": "valid_loss", "rise": 0.05, "bisect": bisect}
        model = network()
        start = loss(model)
        found = pk.prune(model, batches(), "qm", 0.95, scheduler=LEVELS, until=until, valid=batches(2))
        assert loss(model) <= start + 0.05
        return found

    plain, finer = pruned(0), pruned(4)
    broken = plain.attempts[-1]
    assert len(finer.attempts) <= len(plain.attempts) + 4
    assert plain.sparsity < finer.sparsity < broken.sparsity
    first = finer.attempts[len(plain.attempts)]
    assert first.pruned == (plain.steps[-1].pruned + broken.pruned) // 2


def test_a_limit_that_is_never_met_changes_nothing_and_says_how_much_is_left() -> None:
    one, other = network(), network()
    until = {"metric": "valid_loss", "rise": 1000}
    found = pk.prune(one, batches(), "qm", 0.9, scheduler=LEVELS, until=until, valid=batches(2))
    pk.prune(other, batches(), "qm", 0.9, scheduler=LEVELS)
    assert all(torch.equal(v, other.state_dict()[n]) for n, v in one.state_dict().items())
    assert found.stopped is not None
    assert "of 1000 allowed" in found.stopped


def test_a_limit_met_at_the_first_step_leaves_the_network_as_it_was() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    until = {"metric": "valid_loss", "rise": 0}
    found = pk.prune(model, batches(), "random", 0.9, scheduler="one_shot", until=until, valid=batches(2))
    assert found.steps == []
    assert found.sparsity == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_metric_that_is_not_a_number_has_risen_too_far() -> None:
    def lost(model: nn.Module) -> float:
        return math.nan if bool((model.get_parameter("0.weight") == 0).any()) else 0.5

    until = {"metric": "valid_loss", "rise": 1e9}
    found = pk.prune(network(), batches(), "lm", 0.9, scheduler=LEVELS, until=until, valid=lost)
    assert found.steps == []
    assert not found.attempts[0].accepted


def test_the_metric_may_be_a_function_of_the_model() -> None:
    seen: list[bool] = []

    def misses(model: nn.Module) -> float:
        seen.append(model.training)
        return error(model)

    one, other = network(), network()
    until = {"metric": "valid_error", "rise": 0.05}
    first = pk.prune(one.train(), batches(), "qm", 0.95, scheduler=LEVELS, until=until, valid=misses)
    second = pk.prune(other, batches(), "qm", 0.95, scheduler=LEVELS, until=until, valid=batches(2))
    assert [a.accepted for a in first.attempts] == [a.accepted for a in second.attempts]
    assert not any(seen)
    assert one.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"until": {"metric": "valid_error", "rise": 0.1}}, "batches given as valid="),
        ({"until": {"metric": "test_error", "rise": 0.1}, "valid": batches(2)}, "valid_error and valid_loss"),
        ({"until": {"metric": "accuracy", "rise": 0.1}, "valid": batches(2)}, "metric"),
        ({"until": {"metric": "valid_error", "rise": -0.1}, "valid": batches(2)}, "rise"),
        ({"until": {"metric": "valid_error"}, "valid": batches(2)}, "rise is missing"),
        ({"until": "valid_error", "valid": batches(2)}, "a mapping with metric and rise"),
        ({"valid": batches(2)}, "for `until`"),
        (
            {"until": {"metric": "valid_error", "rise": 1, "rises": 2}, "valid": batches(2)},
            "unknown option 'rises'",
        ),
    ],
)
def test_limits_that_make_no_sense_are_refused_before_anything_changes(
    arguments: dict[str, Any], message: str
) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(pk.SpecError, match=message):
        pk.prune(model, batches(), "qm", 0.9, scheduler=LEVELS, **arguments)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_limit_may_stand_in_the_schedulers_mapping_but_not_twice() -> None:
    until = {"metric": "valid_error", "rise": 0.05}
    scheduler = {**LEVELS, "until": until}
    one = pk.prune(network(), batches(), "qm", 0.95, scheduler=scheduler, valid=batches(2))
    other = pk.prune(network(), batches(), "qm", 0.95, scheduler=LEVELS, until=until, valid=batches(2))
    assert one.stopped == other.stopped
    with pytest.raises(pk.SpecError, match="given twice"):
        pk.prune(network(), batches(), "qm", 0.95, scheduler=scheduler, until=until, valid=batches(2))


# -- the wrapper, by its history alone ------------------------------------------------------------------------------


def story(scheduler: pk.Scheduler, value: Any) -> list[pk.Attempt]:
    """What a limited scheduler does with 1000 weights of which ``value(sparsity)`` is the metric."""
    history: list[pk.Attempt] = []
    while (target := scheduler.next(history)) is not None:
        pruned = round(1000 * target.sparsity)
        measured = {"until": {"value": value(target.sparsity), "start": 0.0}}
        attempt = pk.Attempt(1, target, pruned / 1000, pruned, 0.0, 0.0, 0.0, measured=measured)
        history.append(replace(attempt, accepted=scheduler.accept(attempt, history)))
    return history


def test_bisection_finds_the_place_where_the_limit_is_met() -> None:
    inner = adaptive.EveryOther(sparsity=0.9, steps=3)
    inner.accept = lambda attempt, history: True  # type: ignore[method-assign]  # a fixed schedule
    history = story(limited(inner, Until(metric="valid_loss", rise=0.5, bisect=20)), lambda s: s)
    assert max(a.pruned for a in history if a.accepted) == 500
    assert [round(a.sparsity, 3) for a in history[:4]] == [0.3, 0.6, 0.45, 0.525]


def test_what_the_scheduler_inside_takes_back_does_not_count_as_broken() -> None:
    plain = adaptive.EveryOther(sparsity=0.9, steps=3)
    history = story(limited(plain, Until(metric="valid_loss", rise=0.7)), lambda s: s)
    assert [a.accepted for a in history] == [False, True, False, True, False, False]
    assert history[-1].sparsity == pytest.approx(0.9)
    stop = limited(plain, Until(metric="valid_loss", rise=0.7)).stopped(history)
    assert stop is not None
    assert not stop.short
    assert "+0.9 of 0.7 allowed at sparsity 0.9" in stop.why


# -- in a run --------------------------------------------------------------------------------------------------------


def spec(folder: Path, **changes: Any) -> dict[str, Any]:
    until = {"metric": "valid_error", "rise": 0.05, "bisect": 2}
    scheduler = {"name": "linear", "sparsity": 0.95, "steps": 8, "until": until}
    prune = {"criterion": "qm", "scheduler": scheduler, "examples": 50, **changes}
    return running.mapping(folder, prune=prune)


def test_a_run_says_how_far_it_came_and_why_it_stopped(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    with pk.run(spec(tmp_path), tmp_path / "run.h5") as results:
        summary = results.summary
    assert summary["status"] == "complete"
    assert summary["steps"][-1]["sparsity"] < 0.95
    limit = summary["dense"]["valid_error"] + 0.05
    assert all(step["valid_error"] <= limit for step in summary["steps"])
    assert summary["pruned"]["valid_error"] == summary["steps"][-1]["valid_error"]
    broken = [a for a in summary["attempts"] if not a["accepted"]]
    assert broken
    assert all(a["measured"]["until"]["value"] > limit for a in broken)
    assert "valid_error" in summary["stopped"]
    assert summary["finetuned"] is not None
    code, out, _ = running.cli("inspect", tmp_path / "run.h5")
    assert code == 0
    assert "Pruning stopped by until: valid_error" in " ".join(out.split())
    code, out, _ = running.cli("inspect", tmp_path / "run.h5", "--json")
    assert json.loads(out)["stopped"] == summary["stopped"]


@pytest.mark.parametrize(
    ("until", "message"),
    [
        ({"metric": "valid_err", "rise": 0.1}, r"prune.scheduler.until.metric: must match"),
        (
            {"metric": "valid_error", "rise": -1},
            r"prune.scheduler.until.rise: must be greater than or equal to 0",
        ),
        ({"metric": "valid_error"}, r"prune.scheduler.until.rise: missing"),
        ({"metric": "valid_error", "rise": 0.1, "rises": 1}, r"prune.scheduler.until.rises: unknown key"),
        (3, r"prune.scheduler.until: must be"),
    ],
)
def test_a_spec_with_a_limit_that_makes_no_sense_is_refused_by_its_path(
    until: object, message: str, tmp_path: Path
) -> None:
    running.write_data(tmp_path / "data.npz")
    wrong = spec(tmp_path)
    wrong["prune"]["scheduler"]["until"] = until
    with pytest.raises(pk.SpecError, match=message):
        pk.run(wrong, tmp_path / "run.h5")
    assert not (tmp_path / "run.h5").exists()


def test_a_metric_that_the_run_does_not_measure_is_refused_with_those_it_does(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz", valid=0)
    with pytest.raises(pk.SpecError, match=r"'valid_error' is not measured.*train_loss, test_loss"):
        pk.run(spec(tmp_path), tmp_path / "run.h5")
    assert not (tmp_path / "run.h5").exists()


def test_a_schedule_that_a_selector_cannot_follow_is_refused_early_with_a_limit_too() -> None:
    until = {"metric": "valid_error", "rise": 0.05}
    selector = {"name": "nm", "n": 2, "m": 4}
    with pytest.raises(pk.SpecError, match=r"0\.95|sparsity"):
        pk.prune(network(), batches(), "qm", 0.95, 1, "linear", selector, until=until, valid=batches(2))


def test_validate_says_that_steps_may_be_fewer(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    (tmp_path / "spec.yaml").write_text(json.dumps(spec(tmp_path)))
    code, out, _ = running.cli("validate", tmp_path / "spec.yaml")
    assert code == 0
    assert "at most 8 pruning steps" in out
