"""Splits measured after some steps only: what is measured is the same, what is not is left out, nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import running

import prunekit as pk
from prunekit.observing.listener import Listener
from prunekit.plugins.host import default_manager
from prunekit.runs.start import start
from prunekit.spec import load

EVERY = {"evaluate.every": 2, "prune.scheduler.steps": 5}
METRICS = [f"{split}_{kind}" for split in ("train", "valid", "test") for kind in ("loss", "error")]


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    return running.write_spec(tmp_path)


def test_what_is_measured_is_the_same_and_nothing_else_changes(spec: Path, tmp_path: Path) -> None:
    pk.run(spec, tmp_path / "all.h5", {"prune.scheduler.steps": 5}).close()
    pk.run(spec, tmp_path / "some.h5", EVERY).close()
    with pk.open(tmp_path / "all.h5") as whole, pk.open(tmp_path / "some.h5") as some:
        for a, b in zip(whole.summary["steps"], some.summary["steps"], strict=True):
            for name in METRICS:
                assert b[name] == (a[name] if b["step"] in (2, 4, 5) else None)
            same = ("sparsity", "delta_loss", "predicted_delta_loss", "layers")
            assert all(a[name] == b[name] for name in same)
        for phase in ("dense", "pruned", "finetuned"):
            assert whole.summary[phase] == some.summary[phase]
        for step in range(1, 6):
            masks = whole.masks(step), some.masks(step)
            assert all((masks[0][name] == masks[1][name]).all() for name in masks[0])
        assert whole.summary["spec_hash"] != some.summary["spec_hash"]


def test_measuring_always_is_what_it_was_before_there_was_a_choice(spec: Path, tmp_path: Path) -> None:
    hashes = []
    for number, overrides in enumerate([{}, {"evaluate.every": 1}]):
        with pk.run(spec, tmp_path / f"{number}.h5", overrides) as results:
            hashes.append(results.summary["spec_hash"])
    assert hashes[0] == hashes[1]


class Stopping(Listener):
    """After a step."""

    def __init__(self, after: int) -> None:
        self.after = after

    def step(self, record: Any) -> None:
        if record.step == self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 2, 5])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(after: int, spec: Path, tmp_path: Path) -> None:
    pk.run(spec, tmp_path / "whole.h5", EVERY).close()
    out = tmp_path / "stopped.h5"
    with pytest.raises(KeyboardInterrupt):
        start(load(spec, EVERY), out, default_manager(), Stopping(after))
    start(load(spec, EVERY), out, default_manager(), resume=True)
    assert running.contents(out) == running.contents(tmp_path / "whole.h5")


def test_it_is_shown_drawn_verified_and_put_on_a_page(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "some.h5"
    pk.run(spec, out, EVERY).close()
    code, printed, err = running.cli(
        "inspect", out, "--plot", tmp_path / "x.svg", "--html", tmp_path / "x.html"
    )
    assert code == 0, err
    assert "–" in printed
    assert running.cli("verify", out)[0] == 0
    with pk.open(out) as results:
        results.plot(tmp_path / "loss.png", "loss")
    assert running.cli("compare", out, out, "--html", tmp_path / "y.html", "--overwrite")[0] == 0


def test_a_scheduler_that_adapts_ends_with_all_metrics(spec: Path, tmp_path: Path) -> None:
    overrides: dict[str, Any] = {
        "evaluate.every": 1000,
        "prune.scheduler": {"name": "trust_region", "sparsity": 0.5},
        "prune.criterion.lambda": 0.0,
    }
    with pk.run(spec, tmp_path / "adaptive.h5", overrides) as results:
        assert results.summary["pruned"]["test_loss"] is not None
        assert all(step["test_loss"] is None for step in results.summary["steps"])
