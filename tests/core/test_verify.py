"""``prunekit verify`` finds by name what a file claims and is not so, and whole runs hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import running

import prunekit as pk

PRUNE = {
    "criterion": {"name": "qm", "lambda": 1e-3},
    "scheduler": {"name": "exponential", "sparsity": 0.7, "steps": 3},
    "examples": 50,
}
BUDGET = [{"name": "error_budget", "layers": True}]
KINDS: dict[str, dict[str, Any]] = {
    "single precision": {"probes": BUDGET},
    "double precision": {"dtype": "float64", "probes": BUDGET},
    "bfloat16": {"dtype": "bfloat16"},
    "updates": {"prune": {**PRUNE, "criterion": "combinatorial"}, "probes": BUDGET},
    "trust region": {
        "prune": {
            **PRUNE,
            "criterion": "combinatorial",
            "scheduler": {"name": "trust_region", "sparsity": 0.7},
        }
    },
    "no pruning": {"prune": None, "finetune": None, "probes": None},
    "digits": {"dataset": {"name": "digits"}},
    "few examples": {"evaluate": {"train_examples": 30}, "probes": BUDGET},
    "batch normalisation calibrated anew": {
        "model": {"name": "python", "factory": "running:convnet"},
        "prune": {**PRUNE, "recalibrate_batchnorm": 20},
        "probes": BUDGET,
    },
    "class weights": {"loss": {"name": "cross_entropy", "weight": [1.0, 2.0, 0.5]}, "probes": BUDGET},
}


def run(folder: Path, **changes: Any) -> Path:
    if not (folder / "data.npz").exists():
        running.write_data(folder / "data.npz")
    spec = running.mapping(folder, **changes)
    if "dataset" in changes:
        spec["dataset"] = changes["dataset"]
    pk.run(spec, folder / "run.h5").close()
    return folder / "run.h5"


def verdicts(path: Path, **how: Any) -> dict[str, list[str]]:
    """Names of the claims by verdict."""
    with pk.open(path) as results:
        claims = results.verify(**how).claims
    found: dict[str, list[str]] = {"holds": [], "differs": [], "unchecked": []}
    for claim in claims:
        found[claim.verdict].append(claim.name)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_run_claims_holds(kind: str, tmp_path: Path) -> None:
    path = run(tmp_path, **KINDS[kind])
    found = verdicts(path)
    assert not found["differs"]
    for phase in ("dense", *(("pruned", "finetuned") if kind != "no pruning" else ())):
        assert f"{phase} test_loss" in found["holds"]
        assert f"{phase} test_error" in found["holds"]
    assert "spec_hash" in found["holds"]
    expected = ["error_budget: sampling and generalisation are the splits' changes"] * (
        kind == "few examples"
    )
    if kind not in ("updates", "trust region", "batch normalisation calibrated anew"):
        assert found["unchecked"] == expected
    if kind != "no pruning":
        assert "masks are nested" in found["holds"]
    if KINDS[kind].get("probes") is BUDGET:
        assert "error_budget: parts sum to measured" in found["holds"]


CERTIFICATES = [
    {"name": "certificate", "store": True},
    {"name": "certificate", "label": "given", "damping": 0.3, "curvature": "empirical_fisher", "store": True},
    {"name": "certificate", "label": "level", "gradient": False, "store": True},
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["updates", "trust region"])
def test_what_certificates_claim_holds(kind: str, dtype: str, tmp_path: Path) -> None:
    found = verdicts(run(tmp_path, **{**KINDS[kind], "probes": CERTIFICATES}, dtype=dtype))
    assert not found["differs"]
    for label in ("certificate", "given", "level"):
        for claim in ("bound", "value", "damping is the step's", "weights before the steps"):
            assert f"{label}: {claim}" in found["holds"]


@pytest.mark.parametrize(
    ("place", "claim"),
    [
        ("stored/nu", "bound"),
        ("certificate/bound", "bound"),
        ("certificate/value", "value"),
        ("certificate/damping", "damping is the step's"),
        ("certificate/budget", "budget is what the step keeps"),
        ("stored/weights", "bound"),
    ],
)
def test_a_certificate_that_was_tampered_with_is_found(place: str, claim: str, tmp_path: Path) -> None:
    path = run(tmp_path, **{**KINDS["updates"], "probes": CERTIFICATES[:1]}, finetune=None)
    with h5py.File(path, "r+") as file:
        found = file[f"probes/certificate/step/{place}"]
        found[1] = found[1] * 1.01 + (1 if place.endswith("budget") else 0)
    assert f"certificate: {claim}" in verdicts(path)["differs"]
    assert running.cli("verify", path)[0] == 1


def test_a_regression_holds(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz", regression=True)
    found = verdicts(run(tmp_path))
    assert "pruned train_loss" in found["holds"]
    assert not found["differs"] + found["unchecked"]
    assert not [name for name in found["holds"] if "error" in name]


def test_an_unfinished_run_holds_as_far_as_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit.training.loop import Trainer

    monkeypatch.setattr(Trainer, "epoch", lambda *_: (_ for _ in ()).throw(pk.RunError("enough")))
    running.write_data(tmp_path / "data.npz")
    with pytest.raises(pk.RunError):
        pk.run(running.mapping(tmp_path, train={"epochs": 0}), tmp_path / "run.h5")
    found = verdicts(tmp_path / "run.h5")
    assert "steps delta_loss" in found["holds"]
    assert not found["differs"] + found["unchecked"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("whole"), probes=BUDGET)


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path / "run.h5"))


def tamper(path: Path, change: Callable[[h5py.File], None]) -> None:
    """Under right checksums."""
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        change(file)


def _swap(file: h5py.File) -> None:
    """A weight that went comes back for one that stayed; counts remain."""
    gone = file["masks/gone"][()]
    tensor = json.loads(file["prunable/tensors"][()].tobytes())[0]
    part = gone[tensor["start"] : tensor["stop"]]
    went, stayed = int(np.flatnonzero(part == 2)[0]), int(np.flatnonzero(part == 0)[0])
    part[went], part[stayed] = 0, 2
    file["masks/gone"][...] = gone


def _swap_steps(file: h5py.File) -> None:
    """Two weights go at each other's steps; the last masks remain."""
    gone = file["masks/gone"][()]
    tensor = json.loads(file["prunable/tensors"][()].tobytes())[0]
    part = gone[tensor["start"] : tensor["stop"]]
    first, second = np.flatnonzero(part == 1)[:4], np.flatnonzero(part == 3)[:4]
    part[first], part[second] = 3, 1
    file["masks/gone"][...] = gone


def _scale(place: str, factor: float) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        values = file[place][()]
        values.flat[0] *= factor
        file[place][...] = values

    return change


def _hash(file: h5py.File) -> None:
    text = file["spec/hash"][()]
    text[0] = ord("0") if text[0] != ord("0") else ord("1")
    file["spec/hash"][...] = text


def _seed(file: h5py.File) -> None:
    text = file["spec/resolved"][()].tobytes().replace(b'"seed": 7', b'"seed": 8')
    file["spec/resolved"][...] = np.frombuffer(text, np.uint8)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (_scale("metrics/pruned/test_loss", 1.001), ["pruned test_loss"]),
        (_scale("metrics/dense/train_error", 1.5), ["dense train_error"]),
        (_scale("metrics/finetuned/valid_loss", 0.999), ["finetuned valid_loss"]),
        (_scale("steps/valid_loss", 1.001), ["steps valid_loss"]),
        (_scale("steps/test_error", 2.0), ["steps test_error"]),
        (_scale("steps/delta_loss", 1.01), ["error_budget: measured is the step's delta_loss", "steps delta_loss"]),
        (
            _scale("probes/error_budget/step/budget/linear", 1.01),
            [
                "error_budget: parts sum to measured",
                "error_budget: layers' linear sums to the part",
                "error_budget: what is shown is what was stored",
            ],
        ),
        (_scale("probes/error_budget/step/layers/diagonal", 1.01), ["error_budget: layers' diagonal sums to the part"]),
        (_scale("weights/dense/fc.1.bias", 1.1), ["dense train_loss", "dense valid_loss", "dense test_loss"]),
        (_swap, ["pruned weights are zero where the masks prune", "finetuned weights are zero where the masks prune"]),
        (_swap_steps, ["steps delta_loss"]),
        (_hash, ["spec_hash"]),
        (_seed, ["spec_hash"]),
    ],
    ids=[
        "loss", "error", "fine-tuned loss", "step's loss", "step's error", "change", "part", "layer's part", "weight",
        "mask", "order of masks", "hash", "spec",
    ],
)  # fmt: skip
def test_what_was_changed_is_found_by_name(
    change: Callable[[h5py.File], None], names: list[str], path: Path
) -> None:
    tamper(path, change)
    found = verdicts(path)
    assert set(names) <= set(found["differs"])
    code, out, _ = running.cli("verify", path)
    assert code == 1
    assert all(f"DIFFERS    {name}" in out for name in names)


def test_the_rest_still_holds(path: Path) -> None:
    tamper(path, _scale("metrics/pruned/test_loss", 1.001))
    assert verdicts(path)["differs"] == ["pruned test_loss"]


def test_a_number_that_differs_is_given_with_what_was_found(path: Path) -> None:
    with pk.open(path) as results:
        stated = results.summary["pruned"]["test_loss"]
    tamper(path, _scale("metrics/pruned/test_loss", 2.0))
    with pk.open(path) as results:
        (claim,) = results.verify().differing
    assert f"the file says {2 * stated:.9g}, found {stated:.5g}"[:-1] in claim.detail
    assert "allowed" in claim.detail


def test_other_data_are_found_by_their_name_and_not_held_against_the_numbers(
    whole: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(whole, tmp_path / "run.h5"))
    running.write_data(tmp_path / "data.npz", train=119)
    found = verdicts(path, overrides={"dataset.path": str(tmp_path / "data.npz")})
    (name,) = found["differs"]
    assert name.startswith("input ")
    assert name.endswith("data.npz")
    assert "pruned test_loss" in found["unchecked"]
    assert "spec_hash" in found["holds"]


def test_data_that_lie_elsewhere_now_are_as_good(whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole.parent / "data.npz", tmp_path / "moved.npz")
    code, out, _ = running.cli("verify", whole, "--set", f"dataset.path={tmp_path / 'moved.npz'}")
    assert code == 0
    assert "0 differ, 0 cannot be checked" in out


def test_without_data_the_rest_is_checked_and_it_is_no_error(whole: Path, tmp_path: Path) -> None:
    code, out, _ = running.cli("verify", whole, "--set", f"dataset.path={tmp_path / 'gone.npz'}")
    assert code == 0
    assert "unchecked  pruned test_loss: " in out
    assert "gone.npz" in out
    assert "holds      masks are nested" in out


def test_other_examples_of_a_data_set_without_files_are_found(tmp_path: Path) -> None:
    path = run(tmp_path, dataset={"name": "digits"})

    def change(file: h5py.File) -> None:
        text = file["environment"][()].tobytes()
        place = text.index(b"sha256:") + len(b"sha256:")
        digit = b"0" if text[place : place + 1] != b"0" else b"1"
        file["environment"][...] = np.frombuffer(text[:place] + digit + text[place + 1 :], np.uint8)

    tamper(path, change)
    found = verdicts(path)
    assert found["differs"] == ["examples"]
    assert "dense train_loss" in found["unchecked"]


def test_another_network_under_the_same_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run(tmp_path, model={"name": "python", "factory": "running:convnet"}, probes=None)
    monkeypatch.setattr(running, "convnet", lambda: running.narrow())
    with pk.open(path) as results:
        verification = results.verify()
    assert verification.holds
    (claim,) = (c for c in verification.claims if c.name == "pruned test_loss")
    assert claim.verdict == "unchecked"
    assert "the network that the spec builds here is different" in claim.detail


def test_a_strangers_python_is_refused_with_no_code_and_named_without(tmp_path: Path) -> None:
    path = run(tmp_path, model={"name": "python", "factory": "running:convnet"}, probes=None)
    code, out, err = running.cli("verify", path, "--no-code")
    assert code == 0
    assert "model 'python' runs Python that the spec names" in out
    assert "unchecked  pruned test_loss" in out
    assert "holds      masks are nested" in out
    code, out, err = running.cli("verify", path)
    assert code == 0
    assert "0 differ, 0 cannot be checked" in out
    assert "names Python to run: model 'python' running:convnet" in err


def test_json_has_every_claim(path: Path) -> None:
    tamper(path, _hash)
    code, out, _ = running.cli("verify", path, "--json")
    found = json.loads(out)
    assert code == 1
    assert found["differs"] == 1
    assert found["file"] == str(path)
    assert found["holds"] + found["differs"] + found["unchecked"] == len(found["claims"])
    (wrong,) = (c for c in found["claims"] if c["verdict"] == "differs")
    assert wrong["name"] == "spec_hash"


def test_what_cannot_be_read_ends_with_code_2(path: Path, tmp_path: Path) -> None:
    assert "no such file" in running.refused("verify", tmp_path / "none.h5").lower()
    tamper(path, _scale("steps/sparsity", 1.1))
    assert "damaged" in running.refused("verify", path)


def test_a_file_of_the_first_format_is_checked_as_far_as_it_goes() -> None:
    old = Path(__file__).parents[1] / "data" / "results-0.1.0.h5"
    found = verdicts(old)
    assert not found["differs"]
    assert "masks are nested" in found["holds"]
