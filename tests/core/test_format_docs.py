"""A fresh results file holds what ``docs/format.md`` specifies, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import prunekit as pk
from prunekit.results import FORMAT_VERSION
from prunekit.results.format import ATTEMPT_COLUMNS, INTEGER_COLUMNS, MOMENTS, STATUSES

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
SPEC = {
    "version": 1,
    "name": "format",
    "model": {"name": "mlp", "hidden": [6]},
    "dataset": {"name": "digits"},
    "train": {"epochs": 1},
    "prune": {
        "criterion": "lm",
        "scheduler": {"name": "linear", "sparsity": 0.5, "steps": 2},
        "examples": 20,
    },
    "finetune": {"epochs": 1},
    "probes": [{"name": "line", "points": 3, "examples": 20}],
}

ROOT_ATTRIBUTES = {"format", "format_version", "prunekit_version", "status"}
TENSORS = {"fc.0.weight", "fc.0.bias", "fc.1.weight", "fc.1.bias"}
COLUMNS = {
    "step",
    "target_sparsity",
    "sparsity",
    "pruned",
    "remaining",
    "predicted_delta_loss",
    "delta_loss",
    "seconds",
}
METRICS = {f"{split}_{what}" for split in ("train", "valid", "test") for what in ("loss", "error")}
LINES = {f"probes/line/end/{g}" for g in ("dense_to_pruned", "pruned_to_finetuned")}

PARABOLAS = ("hessian_parabola", "ggn_parabola")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("format") / "run.h5"
    pk.run(SPEC, out).close()
    return out


@pytest.fixture
def file(path: Path) -> Any:
    with h5py.File(path, "r", locking=False) as opened:
        yield opened


def members(file: h5py.File) -> tuple[set[str], set[str]]:
    """Paths of all groups and of all datasets."""
    groups, datasets = set(), set()
    file.visititems(lambda name, item: (groups if isinstance(item, h5py.Group) else datasets).add(name))
    return groups, datasets


def test_the_file_has_just_the_groups_that_are_documented(file: h5py.File) -> None:
    phases = {"dense", "pruned", "finetuned"}
    assert members(file)[0] == {
        *("spec", "prunable", "steps", "masks", "examples", "metrics", "weights", "training"),
        *("probes", "probes/line", "probes/line/end"),
        *(f"metrics/{p}" for p in phases),
        *(f"weights/{p}" for p in phases),
        *(f"training/{p}" for p in phases - {"pruned"}),
        *LINES,
    }


def test_the_file_has_just_the_datasets_that_are_documented(file: h5py.File) -> None:
    phases = {"dense", "pruned", "finetuned"}
    assert members(file)[1] == {
        *("spec/resolved", "spec/origins", "spec/text", "spec/hash", "environment", "prunable/tensors"),
        *(f"steps/{c}" for c in (*COLUMNS, *METRICS, "layers")),
        *("masks/gone", "examples/indices", "examples/start", "examples/count"),
        *("probes/line/end/summary", "weights/tensors"),
        *(f"metrics/{p}/{m}" for p in phases for m in METRICS),
        *(f"weights/{p}/{t}" for p in phases for t in TENSORS),
        *(
            f"training/{p}/{c}"
            for p in phases - {"pruned"}
            for c in ("epoch", "running_loss", "valid_loss", "valid_error")
        ),
        *(f"{line}/{d}" for line in LINES for d in ("place", "train_loss", "valid_loss", *PARABOLAS)),
    }


def test_every_attribute_is_documented_and_stands_where_it_should(file: h5py.File) -> None:
    expected: dict[str, set[str]] = {
        "prunable": {"count"},
        "probes/line": {"kind", "kind_version", "headline"},
        "probes/line/end": {"train_examples", "valid_examples"},
    }
    groups, datasets = members(file)
    for name in groups | datasets:
        if name.startswith("metrics/") and name.count("/") == 2:
            expected[name] = {"units"}
        elif name in datasets and name.startswith(("steps", "training", "masks", "examples", *LINES)):
            expected[name] = {"units", "axes"}
    assert set(file.attrs) == ROOT_ATTRIBUTES
    for name in groups | datasets:
        assert set(file[name].attrs) == expected.get(name, set()), name


@pytest.mark.parametrize(
    "word",
    sorted(
        {f"`{a}`" for a in ROOT_ATTRIBUTES | COLUMNS | METRICS}
        | {f"`{s}`" for s in STATUSES}
        | {
            f"`{w}`"
            for w in ("layers", "count", "shape", "start", "stop", "gone", "indices", "units", "axes")
        }
        | {f"`{w}`" for w in ("summary", "kind", "kind_version", "place", "running_loss", "epoch")}
        | {
            "`spec/resolved`",
            "`spec/origins`",
            "`spec/text`",
            "`environment`",
            "`spec/hash`",
            "`prunable/tensors`",
            "`weights/tensors`",
            "`masks/gone`",
        }
        | {f"`{c}`" for c in ATTEMPT_COLUMNS}
        | {f"`{m}`" for m in MOMENTS}
        | {f"`{w}`" for w in ("measured", "inputs", "warnings", "resumptions", "attempts")}
        | {"`dense_to_pruned`", "`train_examples`", "`error`", "MUST", "MAY"}
    ),
)
def test_every_name_stands_in_the_page(word: str) -> None:
    assert word in PAGE


def test_the_page_is_of_this_version() -> None:
    assert PAGE.startswith(f"# The results file, format version {FORMAT_VERSION}\n")


def test_types_and_axes_of_the_steps_are_those_of_the_table(file: h5py.File) -> None:
    section = re.search(r"^## `steps`\n(.*?)^## ", PAGE, re.M | re.S)
    assert section is not None
    rows = re.findall(r"^\| (`.*?) \| (int64|float64) \| ([a-z, ]+) \|", section[1], re.M)
    table = {
        name: (dtype, axes.split(", "))
        for names, dtype, axes in rows
        for name in re.findall("`(.*?)`", names)
    }
    assert set(table) == set(file["steps"])
    for name, (dtype, axes) in table.items():
        data = file["steps"][name]
        assert (str(data.dtype), [a.decode() for a in data.attrs["axes"]]) == (dtype, axes), name
        assert len(data) == 2
        assert (name in INTEGER_COLUMNS) == (dtype == "int64")


def test_the_examples_read_a_mask_and_texts(file: h5py.File, path: Path) -> None:
    code = [c for c in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "file[" in c and "import" not in c]
    names: dict[str, Any] = {"file": file, "json": json, "step": 2}
    for example in code:
        exec(example, names)
    with pk.open(path) as results:
        np.testing.assert_array_equal(names["mask"], results.masks(2)["fc.0.weight"])
        assert names["spec"] == results.summary["spec"]
        assert names["loss"] == results.summary["pruned"]["test_loss"]
    assert isinstance(names["text"], str)


def test_everything_is_under_a_checksum(file: h5py.File) -> None:
    assert file.id.get_create_plist().get_version()[0] == 3
    for name in (*members(file)[0], *members(file)[1], "/"):
        node = file[name]
        for key in node.attrs:
            kind = node.attrs.get_id(key).get_type()
            assert not kind.detect_class(h5py.h5t.VLEN)
            assert not (kind.detect_class(h5py.h5t.STRING) and kind.is_variable_str()), (name, key)
        if isinstance(node, h5py.Dataset):
            properties = node.id.get_create_plist()
            last = properties.get_filter(properties.get_nfilters() - 1)
            assert last[0] == h5py.h5z.FILTER_FLETCHER32, name
            assert node.dtype.kind in "iuf", name
            assert node.shape, name


def test_the_history_says_when_each_weight_went_and_is_compressed_at_the_end(
    file: h5py.File, path: Path
) -> None:
    data = file["masks/gone"]
    assert (data.dtype, data.shape, data.compression) == (
        np.uint8,
        (file["prunable"].attrs["count"],),
        "gzip",
    )
    tensors = json.loads(file["prunable/tensors"][()].tobytes())
    assert [t["name"] for t in tensors] == ["fc.0.weight", "fc.1.weight"]
    assert [t["start"] for t in tensors] + [len(data)] == [0] + [t["stop"] for t in tensors]
    gone = data[()]
    assert np.bincount(gone)[1:].cumsum().tolist() == file["steps/pruned"][()].tolist()


def test_values_are_what_the_page_says(file: h5py.File) -> None:
    steps, count = file["steps"], file["prunable"].attrs["count"]
    assert steps["step"][()].tolist() == [1, 2]
    np.testing.assert_array_equal(steps["remaining"][()], count - steps["pruned"][()])
    np.testing.assert_allclose(steps["sparsity"][()], steps["pruned"][()] / count)
    assert file["examples/start"][()].tolist() == [0, 20]
    assert file["examples/count"][()].tolist() == [20, 20]
    assert file["examples/indices"].shape == (40,)
    assert file["probes/line"].attrs["kind"] == b"probe:line"
    assert steps["train_loss"].attrs["units"] == b"loss"
    assert steps["train_error"].attrs["units"] == b"fraction of predictions"


def test_a_regression_has_no_errors(tmp_path: Path) -> None:
    arrays = {"train_x": np.random.default_rng(0).normal(size=(20, 3)).astype("float32")}
    np.savez(tmp_path / "d.npz", **arrays, train_y=arrays["train_x"][:, :1])
    spec: dict[str, Any] = {**SPEC, "dataset": {"name": "npz", "path": str(tmp_path / "d.npz")}}
    del spec["probes"], spec["train"], spec["finetune"]
    pk.run(spec, tmp_path / "r.h5").close()
    with h5py.File(tmp_path / "r.h5") as opened:
        assert not [name for name in members(opened)[1] if name.endswith("_error")]
        assert np.isnan(opened["steps/valid_loss"][()]).all()
        assert "training" not in opened
        assert "probes" not in opened


def test_a_failure_is_recorded_with_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit.pruning.step import Pruner

    def fail(*_: Any) -> None:
        raise pk.RunError("no more")

    monkeypatch.setattr(Pruner, "outcomes", fail)
    with pytest.raises(pk.RunError):
        pk.run(SPEC, tmp_path / "r.h5")
    with pk.open(tmp_path / "r.h5") as results:
        assert results.summary["status"] == "failed"
        assert results.summary["environment"]["error"] == "no more"
