"""Runs side by side: ``prunekit compare`` and ``pk.compare``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running

import prunekit as pk
from prunekit.reports.overlap import overlaps

PRUNE = {
    "criterion": {"name": "qm", "lambda": 1e-3},
    "scheduler": {"name": "exponential", "sparsity": 0.7, "steps": 3},
    "examples": 50,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two criteria and two seeds, one of another length of fine-tuning, and one of other data."""
    folder = tmp_path_factory.mktemp("runs")
    running.write_data(folder / "data.npz")

    def run(name: str, **changes: Any) -> None:
        pk.run(running.mapping(folder, **changes), folder / f"{name}.h5").close()

    run("qm", prune=PRUNE, probes=["error_budget"])
    run("lm", prune={**PRUNE, "criterion": "lm"})
    run("other_seed", prune=PRUNE, seed=8)
    run("longer", prune=PRUNE, finetune={"epochs": 3})
    running.write_data(folder / "data.npz", train=110)
    run("other_data", prune=PRUNE)
    return folder


def test_the_numbers_are_those_of_the_runs(folder: Path) -> None:
    with pk.open(folder / "qm.h5") as qm:
        found = pk.compare([qm, folder / "lm.h5"])
        steps = qm.summary["steps"]
        assert found.comparable
        assert found.runs[0]["delta_loss"] == pytest.approx(sum(s["delta_loss"] for s in steps), abs=1e-12)
        assert found.runs[0]["finetuned"] == qm.summary["finetuned"]
        budget = qm.summary["probes"]["error_budget"]["steps"]
        linear = sum(step["parts"]["linear"] for step in budget)
        assert found.runs[0]["budget"]["linear"] == pytest.approx(linear, abs=1e-12)
        assert found.runs[0]["calibration"] == budget[-1]["calibration"]
        assert found.runs[1]["budget"] is None
        with pk.open(folder / "lm.h5") as lm:
            ((_, _, whole, layers),) = found.overlaps
            both = one = 0
            for name, a in qm.masks(3).items():
                b = lm.masks(3)[name]
                both, one = both + int((a & b).sum()), one + int((a | b).sum())
                assert layers[name].jaccard == (a & b).sum() / (a | b).sum()
            assert whole.jaccard == both / one
    assert found.differences["prune.criterion.name"] == ["qm", "lm"]
    assert "seed" not in found.differences


def test_chance_is_what_random_masks_of_as_many_weights_have() -> None:
    draw = np.random.default_rng(0)
    shapes = {"a": (40, 30), "b": (200,)}
    kept = {"a": (0.1, 0.3), "b": (0.6, 0.5)}

    def mask(name: str, one: int) -> np.ndarray:
        flat = np.zeros(int(np.prod(shapes[name])), dtype=bool)
        flat[draw.permutation(flat.size)[: round(kept[name][one] * flat.size)]] = True
        return flat.reshape(shapes[name])

    pairs = [({n: mask(n, 0) for n in shapes}, {n: mask(n, 1) for n in shapes}) for _ in range(300)]
    found = [overlaps(a, b) for a, b in pairs]
    for name in ("a", "b"):
        each = [layers[name] for _, layers in found]
        assert np.mean([one.jaccard for one in each]) == pytest.approx(each[0].chance, rel=0.02)
    assert np.mean([whole.jaccard for whole, _ in found]) == pytest.approx(found[0][0].chance, rel=0.02)


def test_masks_that_keep_nothing_have_no_overlap() -> None:
    nothing = {"a": np.zeros((3, 2), dtype=bool)}
    whole, layers = overlaps(nothing, nothing)
    assert whole.jaccard is None
    assert layers["a"].chance is None


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ("longer", r"finetune.epochs \(2 in qm, 3 in longer\)"),
        ("other_data", r"inputs \(the contents of data or checkpoint\)"),
    ],
)
def test_runs_of_unlike_protocols_are_refused_with_what_differs_unless_told_otherwise(
    folder: Path, other: str, says: str
) -> None:
    files = [folder / "qm.h5", folder / f"{other}.h5"]
    with pytest.raises(pk.ResultsError, match=says):
        pk.compare(files)
    found = pk.compare(files, anyway=True)
    assert not found.comparable
    assert found.unlike
    assert "not made under one protocol" in running.refused("compare", *files)
    code, out, _ = running.cli("compare", *files, "--anyway")
    assert code == 0
    assert "Not made under one protocol" in out


def test_seeds_are_no_other_protocol(folder: Path) -> None:
    found = pk.compare([folder / "qm.h5", folder / "other_seed.h5"])
    assert found.comparable
    assert found.differences["seed"] == [7, 8]


def test_the_screen_the_json_and_the_picture_say_the_same(folder: Path, tmp_path: Path) -> None:
    files = [folder / f"{name}.h5" for name in ("qm", "lm", "other_seed")]
    picture = tmp_path / "runs.svg"
    code, out, _ = running.cli("compare", *files, "--plot", picture)
    assert code == 0
    for title in ("What differs", "Runs", "What the measured changes are made of", "Weights kept by both"):
        assert title in out
    assert "prune.criterion.curvature" not in out  # which lm does not have
    for name in ("qm", "lm", "other_seed"):
        assert name in picture.read_text()
    code, out, _ = running.cli("compare", *files, "--json")
    assert json.loads(out) == json.loads(json.dumps(pk.compare(files).summary))


def test_one_run_alone_is_refused(folder: Path) -> None:
    assert "takes at least two results files; found 1" in running.refused("compare", folder / "qm.h5")
    assert "no such file" in running.refused("compare", folder / "qm.h5", folder / "absent.h5")


def test_files_of_one_name_are_told_apart_by_their_folders(folder: Path, tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "run.h5").write_bytes(
            (folder / f"{'qm' if place == 'a' else 'lm'}.h5").read_bytes()
        )
    found = pk.compare([tmp_path / "a/run.h5", tmp_path / "b/run.h5"])
    assert [row["name"] for row in found.runs] == ["a/run", "b/run"]


def test_no_torch_is_loaded(folder: Path) -> None:
    code = (
        "import sys, prunekit as pk; pk.compare(sys.argv[1:]); "
        "from prunekit_cli.main import invoke; invoke(['compare', *sys.argv[1:]]); sys.exit('torch' in sys.modules)"
    )
    files = [folder / "qm.h5", folder / "lm.h5"]
    assert (
        subprocess.run([sys.executable, "-c", code, *files], capture_output=True, check=False).returncode == 0
    )
