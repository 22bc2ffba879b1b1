"""Recorders beside the results file: what they write, and that a run that was stopped leaves what it would have left."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import running

import prunekit as pk
from prunekit.observing.listener import Listener
from prunekit.testing import RecorderContract
from prunekit_plugins.recorders.jsonl import JSONLines

CHANGES = {
    "prune": {
        "criterion": {"name": "qm", "lambda": 1e-3},
        "scheduler": {"name": "linear", "sparsity": 0.6, "steps": 3},
        "examples": 30,
    },
    "train": {"epochs": 2, "batch_size": 120},
    "finetune": {"epochs": 1},
    "probes": ["radius", {"name": "line", "points": 3, "moments": ["pruned", "end"]}],
    "recorders": ["hdf5", "jsonl"],
}
ADAPTIVE = CHANGES | {
    "prune": {
        "criterion": {"name": "combinatorial", "damping": 5.0},
        "scheduler": {
            **{"name": "trust_region", "sparsity": 0.6, "measure": "sample"},
            "tolerance": {"relative": 0, "absolute": 0.025},
        },
        "examples": 30,
    },
    "finetune": None,
}


class TestJSONLines(RecorderContract):
    @pytest.fixture
    def recorder(self) -> pk.Recorder:
        return JSONLines()


class Killed(BaseException):
    """The process is gone."""


def lines(out: Path) -> list[dict[str, Any]]:
    """Events without times."""
    found = []
    for line in out.with_name(f"{out.name}.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        event.pop("seconds", None)
        event.get("environment", {}).pop("date", None)
        found.append(event)
    return found


def test_it_has_a_line_for_each_event_in_order_with_what_the_results_say(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    with pk.run(running.mapping(tmp_path, **CHANGES), tmp_path / "run.h5") as results:
        summary, history = results.summary, results.history("dense")
    events = lines(tmp_path / "run.h5")
    assert [event["event"] for event in events] == [
        "started",
        *["epoch", "epoch", "phase"],
        *["probe", "step"] * 3,
        *["phase", "probe", "epoch", "phase", "probe", "finished"],
    ]
    assert events[0]["spec"] == summary["spec"]
    assert events[0]["spec_hash"] == summary["spec_hash"]
    assert [event["running_loss"] for event in events[1:3]] == history["running_loss"].tolist()
    steps = [event for event in events if event["event"] == "step"]
    for event, row in zip(steps, summary["steps"], strict=True):
        assert {key: value for key, value in row.items() if key != "seconds"} == {
            key: value for key, value in event.items() if key != "event"
        }
    (pruned,) = (event for event in events if event["event"] == "phase" and event["phase"] == "pruned")
    assert pruned["test_loss"] == summary["pruned"]["test_loss"]
    radii = [event["summary"] for event in events if event["event"] == "probe" and event["label"] == "radius"]
    assert radii == [
        {k: v for k, v in row.items() if k != "step"} for row in summary["probes"]["radius"]["steps"]
    ]
    assert events[-1] == {"event": "finished", "status": "complete", "stopped": None}


@pytest.mark.parametrize(
    ("changes", "when"),
    [(CHANGES, "before"), (CHANGES, "within"), (CHANGES, "after"), (ADAPTIVE, "after")],
    ids=["before", "within", "after", "attempts and updates"],
)
def test_a_run_killed_at_any_line_resumes_with_the_lines_of_one_that_nobody_stopped(
    changes: dict[str, Any], when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, **changes)
    pk.run(spec, tmp_path / "whole.h5").close()
    whole, append = lines(tmp_path / "whole.h5"), JSONLines._append
    if changes is ADAPTIVE:
        assert {event["accepted"] for event in whole if event["event"] == "attempt"} == {True, False}
    for allowed in itertools.count():
        left = allowed

        def until_killed(self: JSONLines, event: Any) -> None:
            nonlocal left
            left -= 1
            if left >= 0 or (left == -1 and when == "after"):
                append(self, event)
            if left < 0:
                if left == -1 and when == "within":
                    with self._path.open("ab") as file:
                        file.write(b'{"event": "st')
                raise Killed

        out = tmp_path / f"{allowed}.h5"
        with monkeypatch.context() as patch:
            patch.setattr(JSONLines, "_append", until_killed)
            try:
                pk.run(spec, out).close()
                break
            except Killed:
                pass
        pk.run(spec, out, resume=True).close()
        assert lines(out) == whole
    assert allowed == len(whole)


def test_a_run_killed_at_any_write_resumes_with_the_same_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, **{**CHANGES, "recorders": ["jsonl", "hdf5"]})
    pk.run(spec, tmp_path / "whole.h5").close()
    whole, replace = lines(tmp_path / "whole.h5"), os.replace
    for allowed in itertools.count():
        left = allowed

        def until_killed(*arguments: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            replace(*arguments)

        out = tmp_path / f"{allowed}.h5"
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", until_killed)
            try:
                pk.run(spec, out).close()
                break
            except Killed:
                pass
        pk.run(spec, out, resume=True).close()
        assert lines(out) == whole
    assert allowed > 10


def test_a_new_run_starts_the_file_over_and_leaves_what_is_not_prunekits(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, **CHANGES)
    out, log = tmp_path / "run.h5", tmp_path / "run.h5.jsonl"
    pk.run(spec, out).close()
    before = lines(out)
    pk.run(spec, out, overwrite=True).close()
    assert lines(out) == before
    shutil.copy(__file__, log)
    with pytest.raises(pk.ResultsError, match="not a record that prunekit wrote"):
        pk.run(spec, out, overwrite=True)
    assert log.read_text(encoding="utf-8") == Path(__file__).read_text(encoding="utf-8")


def test_a_failure_is_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit.pruning.step import Pruner

    def fail(*_: Any) -> None:
        raise pk.RunError("no more")

    running.write_data(tmp_path / "data.npz")
    monkeypatch.setattr(Pruner, "outcomes", fail)
    with pytest.raises(pk.RunError):
        pk.run(running.mapping(tmp_path, **CHANGES), tmp_path / "run.h5")
    assert lines(tmp_path / "run.h5")[-1] == {
        "event": "finished", "status": "failed", "stopped": None, "error": "no more"
    }  # fmt: skip


def scalars(out: Path) -> dict[str, list[tuple[int, float]]]:
    reading = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    events = reading.EventAccumulator(f"{out}.tensorboard", size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_gets_the_numbers_of_the_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, recorders=["hdf5", "tensorboard"], probes=["error_budget", "line"])
    with pk.run(spec, tmp_path / "run.h5") as results:
        summary = results.summary
    found = scalars(tmp_path / "run.h5")
    for tag, key in {
        "loss/valid": "valid_loss",
        "change of the loss/predicted": "predicted_delta_loss",
    }.items():
        assert found[tag] == [(s["step"], pytest.approx(s[key])) for s in summary["steps"]]
    for name in summary["steps"][0]["layers"]:
        assert found[f"sparsity of layers/{name}"][-1] == (
            3,
            pytest.approx(summary["steps"][-1]["layers"][name]),
        )
    assert found["loss/test, fine-tuned"] == [(3, pytest.approx(summary["finetuned"]["test_loss"]))]
    assert len(found["training, dense/running_loss"]) == 3
    budget = summary["probes"]["error_budget"]["steps"]
    assert found["error_budget, parts/linear"] == [
        (r["step"], pytest.approx(r["parts"]["linear"])) for r in budget
    ]


def test_tensorboard_of_a_run_that_goes_on_shows_it_whole(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, recorders=["hdf5", "tensorboard"])
    pk.run(spec, tmp_path / "whole.h5").close()

    class Stopping(Listener):
        def step(self, record: pk.StepRecord) -> None:
            if record.step == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pk.run(spec, tmp_path / "run.h5", listener=Stopping())
    pk.run(spec, tmp_path / "run.h5", resume=True).close()
    timeless = [
        {t: v for t, v in scalars(tmp_path / f"{n}.h5").items() if t != "seconds"} for n in ("run", "whole")
    ]
    assert timeless[0] == timeless[1]


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    running.write_data(tmp_path / "data.npz")
    (tmp_path / "run.h5.tensorboard").mkdir()
    (tmp_path / "run.h5.tensorboard" / "mine").write_text("mine")
    with pytest.raises(pk.ResultsError, match="is not what prunekit wrote"):
        pk.run(running.mapping(tmp_path, recorders=["hdf5", "tensorboard"]), tmp_path / "run.h5")
    assert (tmp_path / "run.h5.tensorboard" / "mine").read_text() == "mine"


def test_without_tensorboard_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunekit_plugins.recorders.tensorboard.find_spec", lambda name: None)
    running.write_data(tmp_path / "data.npz")
    with pytest.raises(pk.SpecError, match=r"pip install 'prunekit\[tensorboard\]'"):
        pk.run(running.mapping(tmp_path, recorders=["hdf5", "tensorboard"]), tmp_path / "run.h5")
