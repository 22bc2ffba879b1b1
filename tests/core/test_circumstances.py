"""What a result says of its making, and runs that go on in other circumstances."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
import torch

import prunekit as pk
from prunekit.observing.listener import Listener
from prunekit.results import storing
from prunekit.runs.circumstances import changes
from prunekit_plugins.datasets.xor import XOR

WITHOUT_FILES = {"dataset": {"name": "xor"}, "prune": {**running.mapping(Path())["prune"], "examples": None}}


class Stop(Listener):
    """Interrupts a run after a step."""

    def step(self, record: Any) -> None:
        raise KeyboardInterrupt


def stopped(spec: dict[str, Any], out: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        pk.run(spec, out, listener=Stop())


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    running.write_data(tmp_path / "data.npz")
    return running.mapping(tmp_path)


def test_a_result_says_what_it_was_made_with_where_and_when(spec: dict[str, Any], tmp_path: Path) -> None:
    with pk.run(spec, tmp_path / "out.h5") as results:
        found = results.summary["environment"]
    assert found["numpy"] == np.__version__
    assert found["torch"] == str(torch.__version__)
    assert found["plugins"] == {"prunekit": metadata.version("prunekit")}
    assert found["folder"] == str(Path.cwd())
    assert found["date"].endswith("+00:00")
    assert found["cpu"]
    assert found["best_epoch"].startswith("lowest validation error")
    assert "examples" not in found  # the digest of the file tells


def test_going_on_in_the_same_circumstances_is_nothing_to_record(
    spec: dict[str, Any], tmp_path: Path
) -> None:
    stopped(spec, tmp_path / "out.h5")
    with pk.run(spec, tmp_path / "out.h5", resume=True) as results:
        assert results.summary["resumptions"] == []
        assert "error" not in results.summary["environment"]


def test_going_on_with_other_threads_is_said_in_one_line_and_recorded_each_time(
    spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, threads = tmp_path / "out.h5", torch.get_num_threads()
    stopped(spec, out)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    words = rf"threads: {threads} before, 7 now\), so .* bits"
    with pytest.warns(pk.PrunekitWarning, match=words) as said, pytest.raises(KeyboardInterrupt):
        pk.run(spec, out, resume=True, listener=Stop())
    assert len(said) == 1
    assert "\n" not in str(said[0].message)
    with pk.run(spec, out, resume=True) as results:  # as before this time
        summary = results.summary
    assert summary["environment"]["threads"] == threads
    (resumption,) = summary["resumptions"]
    assert (resumption["step"], resumption["phase"]) == (1, "prune")
    assert resumption["changes"] == {"threads": {"before": threads, "now": 7}}


def test_examples_that_are_others_are_refused_also_without_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, spec = tmp_path / "out.h5", running.mapping(tmp_path, **WITHOUT_FILES)
    stopped(spec, out)
    before = out.read_bytes()
    original = XOR.load

    def other(self: XOR, seed: int) -> pk.Splits:
        splits = original(self, seed)
        splits.train.y[0] = 1 - splits.train.y[0]
        return splits

    monkeypatch.setattr(XOR, "load", other)
    with pytest.raises(pk.ResultsError, match=r"the data have changed .*the examples of dataset 'xor'"):
        pk.run(spec, out, resume=True)
    assert out.read_bytes() == before
    monkeypatch.undo()
    with pk.run(spec, out, resume=True) as results:
        assert results.summary["status"] == "complete"
        assert results.summary["environment"]["examples"].startswith("sha256:")


@pytest.mark.parametrize(
    ("began", "before", "now", "found"),
    [
        ({}, [], {"threads": 2}, {}),
        ({"threads": 1, "date": "a"}, [], {"threads": 1, "date": "b"}, {}),
        ({"threads": 1}, [{"changes": {"threads": {"before": 1, "now": 2}}}], {"threads": 2}, {}),
        (
            {"threads": 1},
            [{"changes": {"threads": {"before": 1, "now": 2}}}],
            {"threads": 1},
            {"threads": {"before": 2, "now": 1}},
        ),
        (
            {"device": "cpu"},
            [],
            {"device": "cuda", "gpu": "A"},
            {"device": {"before": "cpu", "now": "cuda"}, "gpu": {"before": None, "now": "A"}},
        ),
    ],
    ids=["unknown", "date", "again", "back", "device"],
)
def test_circumstances_are_compared_with_those_of_the_last_time(
    began: dict[str, Any], before: list[Any], now: dict[str, Any], found: dict[str, Any]
) -> None:
    assert changes(began, before, now) == found


def test_a_resolved_spec_finds_its_files_from_any_folder_and_says_where_they_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    project.mkdir()
    elsewhere.mkdir()
    source = running.write_spec(project)
    running.write_data(elsewhere / "data.npz", train=60)  # other data of that name
    first = pk.run(source, tmp_path / "a.h5").summary
    assert first["spec"]["folder"] == str(project)
    monkeypatch.chdir(elsewhere)
    second = pk.run(first["spec"], tmp_path / "b.h5").summary
    assert second["inputs"] == first["inputs"]
    assert second["dense"] == first["dense"]
    assert second["spec_hash"] == first["spec_hash"]
    project.rename(tmp_path / "moved")
    with pytest.raises(pk.SpecError, match=f"folder: .*there is no folder {project}"):
        pk.run(first["spec"], tmp_path / "c.h5")
    third = pk.run(first["spec"], tmp_path / "c.h5", {"folder": str(tmp_path / "moved")}).summary
    assert third["dense"] == first["dense"]


def test_a_run_goes_on_where_its_folder_has_been_moved(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    source = running.write_spec(tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        pk.run(source, tmp_path / "out.h5", listener=Stop())
    (tmp_path / "one").rename(tmp_path / "two")
    with pk.run(tmp_path / "two" / source.name, tmp_path / "out.h5", resume=True) as results:
        assert results.summary["status"] == "complete"


def test_what_is_stored_as_json_is_json() -> None:
    found = storing.json_text({"a": [float("nan"), 1.5, (float("inf"),)], "b": {"c": -float("inf")}})
    assert json.loads(found, parse_constant=pytest.fail) == {"a": [None, 1.5, [None]], "b": {"c": None}}
