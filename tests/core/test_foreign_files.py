"""Checkpoints and arrays as other tools write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import running
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from prunekit import DataError, PrunekitWarning
from prunekit.errors import CheckpointError, RunError
from prunekit.network.checkpoint import load_into
from prunekit.network.devices import device_errors
from prunekit_plugins.datasets.npz import Arrays
from prunekit_plugins.losses.cross_entropy import CrossEntropy


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "model.module.", "net.backbone."])
@pytest.mark.parametrize("key", [None, "state_dict", "net", "params", "model"])
def test_a_prefix_and_what_lies_beside_the_weights_are_seen_through(
    prefix: str, key: str | None, tmp_path: Path
) -> None:
    source, model = network(), network()
    weights = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    torch.save(weights if key is None else {key: weights, "epoch": 3, "acc": 91.0}, tmp_path / "c.pt")
    load_into(model, tmp_path / "c.pt")
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in source.state_dict().items())


def test_weights_are_found_two_names_deep(tmp_path: Path) -> None:
    source, model = network(), network()
    torch.save({"model": {"state_dict": source.state_dict(), "ema": 0.9}, "epoch": 3}, tmp_path / "c.pt")
    load_into(model, tmp_path / "c.pt")
    assert torch.equal(model.state_dict()["0.weight"], source.state_dict()["0.weight"])


def test_a_mapping_within_itself_is_no_checkpoint(tmp_path: Path) -> None:
    content: dict[str, object] = {}
    content["model"] = content
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="found dict with 'model'"):
        load_into(network(), tmp_path / "c.pt")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_torch_has_pruned_is_read_as_it_acts(prefix: str, tmp_path: Path) -> None:
    source, model = network(), network()
    prune.random_unstructured(source[0], "weight", amount=5)
    torch.save({prefix + name: tensor for name, tensor in source.state_dict().items()}, tmp_path / "c.pt")
    load_into(model, tmp_path / "c.pt")
    assert int((model[0].weight == 0).sum()) == 5
    assert torch.equal(model[0].weight, source[0].weight)


def test_a_mask_of_another_shape_is_named(tmp_path: Path) -> None:
    weights = network().state_dict()
    weights["0.weight_orig"], weights["0.weight_mask"] = weights.pop("0.weight"), torch.ones(2)
    torch.save(weights, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="weight_mask: not in the model"):
        load_into(network(), tmp_path / "c.pt")


def test_a_pickled_network_is_refused_without_torchs_advice_to_run_it(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "c.pt")
    with pytest.raises(CheckpointError) as refused:
        load_into(network(), tmp_path / "c.pt")
    assert str(refused.value).endswith("it holds other objects, or is damaged")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_a_prefix_is_seen_through_where_a_tied_weight_is_stored_once(tmp_path: Path) -> None:
    source, model = Tied(), Tied()
    torch.save({"module.head.weight": source.head.weight.detach()}, tmp_path / "c.pt")
    load_into(model, tmp_path / "c.pt")
    assert torch.equal(model.embed.weight, source.embed.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {"module." + n: t for n, t in w.items() if n != "0.bias"}, "0.bias: missing"),
        (
            lambda w: {"a." + n: t for n, t in w.items()} | {"b.loss": torch.zeros(1)},
            "b.loss: not in the model",
        ),
        (lambda w: {"generator": w, "epoch": 3}, "found dict with 'generator', 'epoch'"),
        (lambda w: [w], "found list"),
    ],
)
def test_what_does_not_fit_says_what_the_file_holds(change, message: str, tmp_path: Path) -> None:
    torch.save(change(network().state_dict()), tmp_path / "c.pt")
    with pytest.raises(CheckpointError) as refused:
        load_into(network(), tmp_path / "c.pt")
    assert message in str(refused.value)


def arrays(folder: Path, **changes: np.ndarray | None) -> Path:
    held = {"train_x": np.ones((6, 2), "float32"), "train_y": np.arange(6) % 2, **changes}
    np.savez(folder / "data.npz", **{name: array for name, array in held.items() if array is not None})
    return folder / "data.npz"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("val_x", "valid_x"),
        ("validation_x", "valid_x"),
        ("dev_y", "valid_y"),
        ("X_valid", "valid_x"),
        ("test_labels", "test_y"),
        ("test_images", "test_x"),
        ("Test_X", "test_x"),
        ("testx", "test_x"),
    ],
)
def test_an_array_that_is_named_nearly_like_a_split_is_refused(name: str, meant: str, tmp_path: Path) -> None:
    path = arrays(tmp_path, **{name: np.ones((3, 2))})
    with pytest.raises(DataError, match=f"holds {name}, which no split takes; did you mean '{meant}'"):
        Arrays(path=path).load(0)


def test_an_array_that_nobody_asks_for_is_named_and_not_read(tmp_path: Path) -> None:
    path = arrays(
        tmp_path, class_names=np.array([{"a": 1}], dtype=object)
    )  # which would be refused if it were read
    with pytest.warns(PrunekitWarning, match="nothing reads class_names"):
        splits = Arrays(path=path).load(0)
    assert isinstance(splits.train.x, Tensor)
    assert len(splits.train) == 6


@pytest.mark.parametrize("label", [2**31, 10**12, 2**63 - 1])
def test_labels_that_no_network_has_an_output_for_are_refused(label: int, tmp_path: Path) -> None:
    splits = Arrays(path=arrays(tmp_path, train_y=np.array([0, 1, 0, 1, 0, label]))).load(0)
    with pytest.raises(DataError, match=f"labels are classes, counted from 0, and go up to {label}"):
        _ = splits.info


@pytest.mark.parametrize("outputs", [2, 3])  # 2 is what the largest target says
def test_one_hot_rows_are_refused_with_what_to_write_instead(outputs: int) -> None:
    with pytest.raises(DataError, match=r"one-hot rows: use targets.argmax\(1\)"):
        CrossEntropy().total(torch.zeros(4, outputs), torch.eye(3, dtype=torch.int64)[[0, 1, 2, 0]])


def test_a_size_that_no_number_of_bytes_has_is_a_full_memory() -> None:
    with pytest.raises(RunError, match="out of memory"), device_errors():
        torch.empty(10**18, 5)


def test_a_checkpoint_without_counters_of_batch_normalisation_is_read(tmp_path: Path) -> None:
    model = running.convnet()
    state = {name: t.clone() for name, t in model.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "older.pt")
    other = running.convnet()
    load_into(other, tmp_path / "older.pt")
    for name, tensor in state.items():
        assert torch.equal(other.state_dict()[name], tensor)
