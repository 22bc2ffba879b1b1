"""Runs with the trust region: what the file says, how they end, and that a kill among attempts changes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import running

import prunekit as pk
from prunekit.records import Attempt
from prunekit.runs.state import State
from prunekit_plugins.schedulers.trust_region import TrustRegion

STRICT = {"name": "trust_region", "sparsity": 0.8, "tolerance": {"relative": 0.5, "absolute": 0.05}}


def spec(folder: Path, criterion: str = "combinatorial", **options: Any) -> dict[str, Any]:
    running.write_data(folder / "data.npz")
    prune = {"criterion": criterion, "scheduler": STRICT | options, "examples": 50}
    return running.mapping(folder, prune=prune, finetune={"epochs": 1})


class Killed(BaseException):
    """Stands for SIGKILL: nothing that runs after it may write."""


@pytest.mark.parametrize(
    "until", [None, {"metric": "valid_loss", "rise": 0.02, "bisect": 3}], ids=["plain", "until"]
)
def test_a_run_killed_among_attempts_resumes_bit_for_bit(
    until: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = spec(tmp_path, adapt="both", until=until)
    pk.run(settings, tmp_path / "whole.h5").close()
    whole = running.contents(tmp_path / "whole.h5")
    with pk.open(tmp_path / "whole.h5") as results:
        accepted = [attempt["accepted"] for attempt in results.summary["attempts"]]
    assert accepted.count(False) > 1
    saved, killed = State.save, 0

    def save(state: State, path: Path) -> None:
        nonlocal killed
        saved(state, path)
        if len(state.attempts) > killed:
            killed = len(state.attempts)
            raise Killed

    monkeypatch.setattr(State, "save", save)
    out = tmp_path / "killed.h5"
    while True:
        try:
            pk.run(settings, out, resume=True).close()
            break
        except Killed:
            continue
    assert killed == len(accepted)
    assert running.contents(out) == whole


def test_the_recorded_attempts_alone_decide_what_the_scheduler_does(tmp_path: Path) -> None:
    with pk.run(spec(tmp_path, adapt="both"), tmp_path / "run.h5") as results:
        history = replayed(results.summary["attempts"], results.summary["prunable"])
    scheduler = TrustRegion(**{k: v for k, v in STRICT.items() if k != "name"}, adapt="both")
    for i, attempt in enumerate(history):
        assert scheduler.next(history[:i]) == attempt.target
        assert scheduler.accept(replace(attempt, accepted=False), history[:i]) is attempt.accepted
    assert scheduler.next(history) is None


def replayed(rows: Sequence[dict[str, Any]], total: int) -> list[Attempt]:
    """Attempts from the summary of a file, of so many prunable weights."""
    return [
        Attempt(
            row["step"],
            pk.Target(row["target_sparsity"], damping=row["damping"]),
            round(row["target_sparsity"] * total) / total,
            round(row["target_sparsity"] * total),
            row["lambda"],
            row["predicted_delta_loss"],
            row["delta_loss"],
            row["measured"],
            row["accepted"],
        )
        for row in rows
    ]


def test_a_run_that_is_stopped_short_has_failed_and_keeps_everything(tmp_path: Path) -> None:
    out = tmp_path / "run.h5"
    (tmp_path / "spec.yaml").write_text(json.dumps(spec(tmp_path, "qm", passes=2)))
    for again in ([], ["--resume"]):  # which ends where it has ended before
        code, _, err = running.cli("run", tmp_path / "spec.yaml", "--out", out, *again)
        assert code == 1
        assert "stopped short, at sparsity 0." in " ".join(err.split())
        assert "2 passes are used up; 0.8 was asked for" in " ".join(err.split())
        with pk.open(out) as results:
            summary = results.summary
            assert summary["status"] == "failed"
            assert len(summary["steps"]) == 2
            assert summary["pruned"]["valid_loss"] == summary["steps"][-1]["valid_loss"]
            assert summary["finetuned"] is None
            weights, masks = results.weights("pruned"), results.masks(2)
            assert all((weights[name][~mask] == 0).all() for name, mask in masks.items())
            assert "passes are used up" in summary["stopped"]
    code, text, _ = running.cli("inspect", out)
    assert code == 0
    assert "stopped short" in " ".join(text.split())
    assert os.path.exists(out)


def test_inspect_says_how_many_attempts_were_taken_back_and_what_they_did(tmp_path: Path) -> None:
    with pk.run(spec(tmp_path, adapt="both"), tmp_path / "run.h5") as results:
        attempts = results.summary["attempts"]
    gone = [attempt for attempt in attempts if not attempt["accepted"]]
    code, text, _ = running.cli("inspect", tmp_path / "run.h5")
    assert code == 0
    assert f"Attempts taken back ({len(gone)} of {len(attempts)})" in text
    for column in ("damping", "fresh Δloss"):
        assert column in text


def test_a_criterion_without_a_prediction_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(json.dumps(spec(tmp_path, "magnitude")))
    err = running.refused("run", tmp_path / "spec.yaml", "--out", tmp_path / "run.h5")
    assert "criterion 'magnitude' predicts none" in " ".join(err.split())
    assert not (tmp_path / "run.h5").exists()


def test_fresh_examples_are_none_of_the_steps_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit_plugins.probes.fresh import Fresh

    seen: list[tuple[Any, Any]] = []
    measure = Fresh.measure

    def watched(self: Fresh, moment: Any, generator: Any) -> Any:
        seen.append((moment.sample[0][0], moment.fresh[0][0]))
        return measure(self, moment, generator)

    monkeypatch.setattr(Fresh, "measure", watched)
    pk.run(spec(tmp_path), tmp_path / "run.h5").close()
    assert seen
    for own, fresh in seen:
        assert len(own) == len(fresh) == 50
        assert not {tuple(x.flatten().tolist()) for x in own} & {tuple(x.flatten().tolist()) for x in fresh}
