"""A results file from a stranger is refused before it opens or holds anything; one that is no run is refused whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import running

import prunekit as pk
from prunekit.results import storing

Change = Callable[[h5py.File], None]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    running.write_data(folder / "data.npz")
    pk.run(running.mapping(folder), folder / "out.h5").close()
    return folder / "out.h5"


@pytest.fixture
def copy(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return shutil.copy(good, tmp_path / "copy.h5")


def changed(path: Path, change: Change) -> str:
    """What is said of a file after a change, by everything that reads."""
    with h5py.File(path, "r+", libver=storing.LIBVER) as file:
        change(file)
    said = running.refused("inspect", path)
    assert running.refused("inspect", path, "--verify") == said
    assert running.refused("inspect", path, "--plot", path.with_suffix(".png")) == said
    assert running.refused("export", path, "--weights", path.with_suffix(".w")) == said
    assert not path.with_suffix(".png").exists()
    assert not path.with_suffix(".w").exists()
    return said


def put(file: h5py.File, path: str, value: object) -> None:
    """Replace a data set by another array or JSON document."""
    del file[path]
    if isinstance(value, np.ndarray):
        storing.store(file, path, value)
    else:
        storing.store_text(file, path, json.dumps(value))


def edit(file: h5py.File, path: str, change: Callable[[Any], object]) -> None:
    value = storing.read_json(file, path)
    put(file, path, change(value) or value)


# -- what leads out of the file, or claims what it does not hold -------------------------------------


def external_link(file: h5py.File) -> None:
    with h5py.File("other.h5", "w") as other:
        other["x"] = np.zeros(3)
    put_link(file, h5py.ExternalLink("other.h5", "/x"))


def put_link(file: h5py.File, link: object) -> None:
    del file["steps/train_loss"]
    file["steps/train_loss"] = link


def external_storage(file: h5py.File) -> None:
    Path("secret").write_bytes(b"s" * 24)
    del file["steps/train_loss"]
    file.create_dataset("steps/train_loss", (3,), "f8", external=[("secret", 0, 24)])


def pipe(file: h5py.File) -> None:
    os.mkfifo("pipe")
    del file["steps/train_loss"]
    file.create_dataset("steps/train_loss", (3,), "f8", external=[("pipe", 0, 24)])


def virtual(file: h5py.File) -> None:
    del file["steps/train_loss"]
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(".", "steps/train_loss", (3,))
    file.create_virtual_dataset("steps/train_loss", layout)


def endless(file: h5py.File) -> None:
    del file["steps/train_loss"]
    file.create_dataset("steps/train_loss", (1 << 45,), "f8", chunks=(1024,))


def many_weights(file: h5py.File) -> None:
    count = 1 << 45
    file["prunable"].attrs["count"] = count
    put(file, "prunable/tensors", [{"name": "fc.0.weight", "shape": [count], "start": 0, "stop": count}])
    del file["masks/gone"]
    file.create_dataset("masks/gone", (count,), "u1", chunks=(1 << 18,), fletcher32=True)


def opaque(file: h5py.File) -> None:
    del file["weights/pruned/fc.0.weight"]
    file["weights/pruned/fc.0.weight"] = np.zeros((6, 36), "V4")


def other_filter(file: h5py.File) -> None:
    del file["steps/train_loss"]
    file.create_dataset("steps/train_loss", data=np.zeros(3), chunks=(3,), compression="lzf")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (external_link, "is a link to somewhere else"),
        (lambda f: put_link(f, h5py.SoftLink("/steps/valid_loss")), "is a link to somewhere else"),
        (external_storage, "is stored in another file"),
        (pipe, "is stored in another file"),
        (virtual, "is put together from other data sets"),
        (endless, "claims"),
        (many_weights, "masks/gone takes"),
        (opaque, "weights/pruned/fc.0.weight holds neither numbers nor text"),
        (other_filter, "needs the HDF5 filter 32000"),
    ],
    ids=["external link", "soft link", "storage", "pipe", "virtual", "endless", "masks", "opaque", "filter"],
)
def test_what_leads_out_of_a_file_or_claims_more_than_it_holds_is_refused(
    change: Change, words: str, copy: Path
) -> None:
    assert words in changed(copy, change)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_only_regular_files_are_opened(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "x.h5")
    assert "only regular files" in running.refused("inspect", tmp_path / "x.h5")
    assert "only regular files" in running.refused("inspect", "/dev/zero")


def test_what_a_reader_does_not_know_is_left_alone(copy: Path) -> None:
    with h5py.File(copy, "r+") as file:
        file.create_dataset("notes/mine", data=np.zeros(3), chunks=(3,), compression="lzf")
    assert running.cli("inspect", copy, "--verify")[0] == 0


# -- what is no run ----------------------------------------------------------------------------------


def put_column(name: str, values: list[float], dtype: str = "f8") -> Change:
    return lambda file: put(file, name, np.array(values, dtype))


def revived(file: h5py.File) -> None:
    gone = file["masks/gone"][()]
    gone[np.argmax(gone == 1)] = 0
    put(file, "masks/gone", gone)


def later(file: h5py.File) -> None:
    gone = file["masks/gone"][()]
    gone[np.argmax(gone == 1)] = 9
    put(file, "masks/gone", gone)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put_column("steps/test_loss", [1, 2]), "steps: columns of different lengths (2, 3)"),
        (put_column("training/dense/epoch", [1, 2]), "training/dense: columns of different lengths (2, 3)"),
        (put_column("steps/step", [1, 2, 2], "i8"), "2 where step 3 belongs"),
        (put_column("steps/step", [1, 2, 3]), "steps/step: not whole numbers"),
        (put_column("steps/sparsity", [0.1, 0.2, 0.3]), "the sparsity is not the pruned fraction"),
        (put_column("steps/remaining", [1, 2, 3], "i8"), "pruned and remaining do not add up to all weights"),
        (revived, "step 1: the masks prune"),
        (later, "names step 9, and there are 3"),
        (lambda f: put(f, "masks/gone", f["masks/gone"][:-1]), "masks/gone is uint8 of shape (233,)"),
        (lambda f: f["prunable"].attrs.modify("count", 7), "prunable: 7 weights"),
        (lambda f: put(f, "examples/start", np.array([0, 50, 10**9])), "the sample of step 3"),
        (lambda f: put(f, "examples/count", np.array([50, 50])), "different lengths"),
        (lambda f: put(f, "steps/layers", np.zeros((3, 2))), "the sparsities of the layers"),
        (lambda f: put(f, "weights/pruned/fc.0.weight", np.zeros((36, 6))), "not of shape [6, 36]"),
        (lambda f: f.pop("weights/pruned/fc.0.bias"), "fc.0.bias is missing"),
        (lambda f: f.pop("steps/delta_loss"), "steps: no column delta_loss"),
        (lambda f: f.pop("weights/pruned"), "not those of the measured phases"),
        (lambda f: (f.pop("metrics/pruned"), f.pop("weights/pruned")), "is not an initial part of"),
        (lambda f: (f.pop("metrics"), f.pop("weights")), "nothing was measured before them"),
        (lambda f: edit(f, "spec/resolved", lambda s: s.pop("model") and None), "model has no name"),
        (lambda f: f["probes/line"].attrs.pop("kind"), "probes/line: does not say"),
        (lambda f: put(f, "environment", ["linux"]), "environment: not an object"),
        (lambda f: put(f, "probes/line/end/summary", 3), "damaged"),
        (lambda f: put(f, "probes/line/end/summary", {"x": nested(200)}), "nested more than"),
        (lambda f: edit(f, "prunable/tensors", lambda t: t[1].update(start=7)), "does not start where"),
        (
            lambda f: edit(f, "prunable/tensors", lambda t: t[1].update(name="fc.9")),
            "not a tensor of that shape",
        ),
    ],
    ids=range(26),
)
def test_what_is_no_run_is_refused_by_every_reader(change: Change, words: str, copy: Path) -> None:
    assert words in changed(copy, change)


def nested(depth: int) -> object:
    value: object = 0
    for _ in range(depth):
        value = {"in": value}
    return value


def test_verify_says_that_a_file_is_whole_or_what_is_not(copy: Path) -> None:
    code, out, err = running.cli("inspect", copy, "--verify")
    assert (code, err) == (0, "")
    assert "whole" in out
    assert "all with checksums" in out
    found = json.loads(running.cli("inspect", copy, "--verify", "--json")[1])
    assert found["whole"]
    assert found["arrays"] > 60
    with h5py.File(copy, "r+") as file:  # a weight that the masks prune
        mask = file["masks/gone"][: 6 * 36].reshape(6, 36) == 0
        weights = file["weights/finetuned/fc.0.weight"][()]
        weights[~mask] = 1
        file["weights/finetuned/fc.0.weight"][...] = weights
    assert "not zero where the masks prune it" in running.refused("inspect", copy, "--verify")


def test_verify_wants_everything_under_a_checksum(copy: Path) -> None:
    with h5py.File(copy, "r+") as file:
        values = file["steps/seconds"][()]
        del file["steps/seconds"]
        file["steps/seconds"] = values
    assert running.cli("inspect", copy)[0] == 0
    assert "steps/seconds has no checksum" in running.refused("inspect", copy, "--verify")


def test_a_file_of_format_1_is_whole_without_checksums() -> None:
    file = Path(__file__).parents[1] / "data" / "results-0.1.0.h5"
    code, out, _ = running.cli("inspect", file, "--verify")
    assert code == 0
    assert "without checksums" in out


@pytest.mark.parametrize("row", [0, 1])
def test_masks_of_format_1_must_be_nested_and_counted(row: int, tmp_path: Path) -> None:
    file = shutil.copy(Path(__file__).parents[1] / "data" / "results-0.1.0.h5", tmp_path / "old.h5")
    with h5py.File(file, "r+") as opened:
        rows = opened["masks/fc.0.weight"][()]
        rows[row] = 255 if row else 0
        opened["masks/fc.0.weight"][...] = rows
    assert "keeps a weight that was pruned at an earlier step" in running.refused("inspect", file)
