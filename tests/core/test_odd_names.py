"""Tensors whose names are paths to HDF5, hold a zero byte, or are very long."""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from odd_names import LONG, PERCENT, SLASHES, ZERO, Odd

import prunekit as pk
from prunekit.network.checkpoint import load_into


@pytest.fixture
def results(tmp_path: Path):
    spec = {
        "version": 1,
        "device": "cpu",
        "model": {"name": "python", "factory": "odd_names:Odd"},
        "dataset": "xor",
        "train": {"epochs": 1, "batch_size": 2},
        "prune": {"criterion": "lm", "scheduler": {"name": "linear", "sparsity": 0.6, "steps": 2}},
    }
    with pk.run(spec, tmp_path / "odd.h5") as results:
        yield results


def test_every_tensor_is_stored_under_a_name_of_its_own_and_read_under_the_models(
    results, tmp_path: Path
) -> None:
    state = Odd().state_dict()
    dense, pruned = results.weights("dense"), results.weights("pruned")
    assert dense.keys() == pruned.keys() == state.keys()
    assert all(dense[name].shape == tuple(tensor.shape) for name, tensor in state.items())
    assert all(not pruned[name][~mask].any() for name, mask in results.masks(2).items())
    with h5py.File(tmp_path / "odd.h5") as file:
        hashed = hashlib.sha256(LONG.encode()).hexdigest()[:16]
        as_documented = {
            SLASHES: "a%2F%2Fb",
            ZERO: "nul%00",
            PERCENT: "50%252F",
            LONG: f"{'λ' * 100}%{hashed}",
            "w/x.weight": "w%2Fx.weight",
        }
        for name, stored in as_documented.items():
            assert np.array_equal(file[f"weights/dense/{stored}"][()], dense[name])


def test_such_a_file_is_whole_and_can_be_a_checkpoint(results, tmp_path: Path) -> None:
    assert results.whole().arrays > 20
    model = Odd()
    load_into(model, tmp_path / "odd.h5")
    assert all(np.array_equal(t.numpy(), results.weights("pruned")[n]) for n, t in model.state_dict().items())
