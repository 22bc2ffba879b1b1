"""A checkpoint in several files: a folder, or an index."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import prunekit as pk
from prunekit.network.checkpoint import load_into


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))


def sharded(folder: Path, index: bool = True) -> dict[str, torch.Tensor]:
    state = network().state_dict()
    parts = {
        "model-00001-of-00002.safetensors": ["0.weight", "0.bias"],
        "model-00002-of-00002.safetensors": ["2.weight", "2.bias"],
    }
    for file, names in parts.items():
        save_file({name: state[name] for name in names}, folder / file)
    if index:
        where = {name: file for file, names in parts.items() for name in names}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return state


@pytest.mark.parametrize("index", [True, False])
def test_a_folder_is_what_its_files_hold_together(tmp_path: Path, index: bool) -> None:
    state = sharded(tmp_path, index)
    torch.manual_seed(9)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))

    load_into(model, tmp_path)

    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_an_index_may_be_named_and_says_what_is_missing(tmp_path: Path) -> None:
    state = sharded(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    model = network()
    load_into(model, index)
    assert torch.equal(model[0].weight, state["0.weight"])

    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(pk.CheckpointError, match=r"lacks model-00002-of-00002\.safetensors of 2"):
        load_into(model, tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(pk.CheckpointError, match="names files that are not beside it"):
        load_into(model, index)
    index.write_text("[]")
    with pytest.raises(pk.CheckpointError, match="is not an index of weights"):
        load_into(model, index)


def test_a_folder_without_weights_and_one_with_a_tensor_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(pk.CheckpointError, match="holds no weights"):
        load_into(network(), tmp_path)
    state = sharded(tmp_path, index=False)
    save_file({"0.bias": state["0.bias"]}, tmp_path / "more.safetensors")
    with pytest.raises(pk.CheckpointError, match=r"0\.bias in more than one of its files"):
        load_into(network(), tmp_path)


def test_what_lies_in_the_files_is_part_of_what_identifies_a_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    from prunekit_plugins.models.mlp import MLP

    data = pk.DataInfo((64,), 10, "classification")
    state = MLP(hidden=[4]).build(data).state_dict()
    folder = tmp_path / "weights"
    folder.mkdir()
    for number, (name, tensor) in enumerate(state.items()):
        save_file({name: tensor}, folder / f"{number}.safetensors")
    spec = {
        "version": 1,
        "model": {"name": "mlp", "hidden": [4], "checkpoint": str(folder)},
        "dataset": {"name": "digits"},
        "prune": {"criterion": "magnitude", "scheduler": {"name": "one_shot", "sparsity": 0.5}},
    }

    results = pk.run(spec, tmp_path / "run.h5")

    digests = [name for name in results.summary["inputs"] if name.startswith(str(folder))]
    assert len(digests) == len(state)
    assert torch.equal(
        torch.from_numpy(results.weights("dense")[next(iter(state))]), next(iter(state.values()))
    )
