"""Exports without zeros: unpacked again they are the weights, by other libraries where there are some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import prunekit as pk
from prunekit.reports.packing import packed


def sparse(*shape: int, seed: int = 0) -> np.ndarray:
    draws = np.random.default_rng(seed)
    values = draws.normal(size=shape).astype(np.float32)
    return np.where(draws.random(shape) < 0.6, 0, values).astype(np.float32)


def two_of_four(*shape: int) -> np.ndarray:
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32).reshape(-1, 4)
    values[np.arange(len(values)), np.arange(len(values)) % 4] = 0
    values[np.arange(len(values)), (np.arange(len(values)) + 1) % 4] = 0
    values[0] = [0, 0, 3, 0]  # one alone
    return values.reshape(shape)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 2, 2), (3, 8)])
def test_rows_are_torchs_own(shape: tuple[int, ...]) -> None:
    weight = sparse(*shape)

    found = packed({"w": weight, "b": np.ones(3)}, {"w": weight, "b": np.ones(3)}, "csr")

    parts = [torch.from_numpy(found[f"w.{key}"]) for key in ("crow_indices", "col_indices", "values")]
    with torch.sparse.check_sparse_tensor_invariants(True):
        dense = torch.sparse_csr_tensor(*parts, size=(shape[0], weight[0].size)).to_dense()
    np.testing.assert_array_equal(dense.numpy().reshape(found["w.shape"]), weight)
    np.testing.assert_array_equal(found["b"], np.ones(3))


@pytest.mark.parametrize("turned", [False, True])
def test_two_of_four_come_back(turned: bool) -> None:
    weight = two_of_four(6, 8)
    weight = np.ascontiguousarray(weight.T) if turned else weight

    found = packed({"w": weight}, {"w": weight}, "2:4")

    assert int(found["w.axis"]) == (0 if turned else 1)
    values, indices = found["w.values"].reshape(6, 2, 2), found["w.indices"]
    fours = np.zeros((6, 2, 4), dtype=np.float32)
    for k, place in enumerate((indices & 3, indices >> 2)):
        np.put_along_axis(fours, place[..., None].astype(int), values[..., k : k + 1], -1)
    rows = fours.reshape(6, 8)
    np.testing.assert_array_equal(rows.T if turned else rows, weight)


def test_more_than_two_of_four_are_refused_by_name() -> None:
    with pytest.raises(pk.SpecError, match="w has more than two weights left of some four"):
        packed({"w": np.ones((4, 4))}, {"w": np.ones((4, 4))}, "2:4")
    with pytest.raises(pk.SpecError, match="--format zip: accepted are dense, csr, 2:4, compressed-tensors"):
        packed({}, {}, "zip")


@pytest.mark.parametrize("shape", [(5, 7), (3, 16)])
def test_bitmasks_are_those_that_compressed_tensors_reads(shape: tuple[int, ...]) -> None:
    weight = sparse(*shape)
    found = packed({"w": weight}, {"w": weight}, "compressed-tensors")
    helpers: Any = pytest.importorskip("compressed_tensors.utils.helpers", reason="needs compressed-tensors")

    kept = helpers.unpack_bitmasks(torch.from_numpy(found["w.bitmask"]), found["w.shape"].tolist())

    again = torch.zeros(shape)
    again[kept] = torch.from_numpy(found["w.compressed"])
    np.testing.assert_array_equal(again.numpy(), weight)
    np.testing.assert_array_equal(
        found["w.row_offsets"], np.concatenate([[0], (weight != 0).sum(1).cumsum()[:-1]])
    )
    sparse_reader: Any = pytest.importorskip(
        "compressed_tensors.compressors.sparse_compressors.sparse_bitmask",
        reason="its reader of sparse weights came and went: up to 0.12",
    )
    tensors = {key: torch.from_numpy(found[f"w.{key}"]) for key in ("compressed", "bitmask", "row_offsets")}
    read = sparse_reader.BitmaskTensor(shape=found["w.shape"].tolist(), **tensors).decompress()
    np.testing.assert_array_equal(read.numpy(), weight)


def test_a_run_is_exported_in_a_form(tmp_path: Path) -> None:
    spec = {
        "version": 1,
        "model": {"name": "mlp", "hidden": [8]},
        "dataset": {"name": "digits"},
        "prune": {"criterion": "magnitude", "scheduler": {"name": "one_shot", "sparsity": 0.75}},
    }
    results = pk.run(spec, out=tmp_path / "run.h5")

    results.export(weights=tmp_path / "w.safetensors", form="csr")

    found, weights = load_file(tmp_path / "w.safetensors"), results.weights("pruned")
    name = next(iter(results.masks(1)))
    assert len(found[f"{name}.values"]) == np.count_nonzero(weights[name])
    with pytest.raises(pk.SpecError, match="--format csr is a form of weights; give them a file"):
        results.export(masks=tmp_path / "m.safetensors", form="csr")
