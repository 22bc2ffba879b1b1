"""Networks of the real timm: a residual network, a vision transformer, a mixer and a convolutional one after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pictures
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import prunekit as pk
from prunekit.plugins.build import component

WHY_NOT = pictures.why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
SMALL = {"img_size": 8, "patch_size": 2}
NETWORKS: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "test_vit": SMALL,
    "test_convnext": {},
    "mixer": {**SMALL, "num_blocks": 2, "embed_dim": 24},
}


def made(name: str) -> nn.Module:
    """With random weights, also where timm begins with zeros."""
    torch.manual_seed(0)
    network: nn.Module
    if name == "mixer":  # timm's names of mixers fix their size
        from timm.models.mlp_mixer import MlpMixer

        network = MlpMixer(num_classes=10, in_chans=1, **NETWORKS[name])
    else:
        data = pk.DataInfo((1, 8, 8), 10, "classification")
        network = component("model", {"name": "timm", "model": name, "kwargs": NETWORKS[name]}).build(data)
    for p in network.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return network.eval()


def batches(name: str, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    size = 32 if name == "test_convnext" else 8
    x = torch.randn(10, 1, size, size, generator=draw).to(dtype)
    y = torch.randperm(10, generator=draw)
    return [(x[:6], y[:6]), (x[6:], y[6:])]


@pytest.mark.parametrize("name", NETWORKS)
def test_all_its_matrices_are_pruned_and_have_the_fast_rules(name: str) -> None:
    network = made(name)
    found = pk.coverage(network, batches(name))

    assert set(found.rules.values()) == {"fast"}
    matrices = {n for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert {n.removesuffix(".weight") for n in found.rules} == matrices


@pytest.mark.parametrize("name", NETWORKS)
def test_its_diagonals_are_those_of_every_examples_gradients(name: str) -> None:
    network = made(name).double()
    given = batches(name, torch.float64)
    names = list(pk.coverage(network, given).rules)
    found = pk.statistics(network, given, ["empirical_fisher_diagonal", "ggn_diagonal"])

    weights = [network.get_parameter(n) for n in names]
    fisher, ggn = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    for x, y in given:
        for i in range(len(x)):
            logits = network(x[i : i + 1])
            log_p = logits.log_softmax(1)[0]
            for c, probability in enumerate(log_p.exp().tolist()):  # the GGN is the labels' expectation here
                gradients = torch.autograd.grad(-log_p[c], weights, retain_graph=True)
                for k, gradient in enumerate(gradients):
                    ggn[k] += probability * gradient**2
                    fisher[k] += gradient**2 if c == int(y[i]) else 0
    for k, n in enumerate(names):
        for statistic, total in (("empirical_fisher_diagonal", fisher[k]), ("ggn_diagonal", ggn[k])):
            expected = total / 10
            tolerance = 1e-12 * float(expected.max())
            torch.testing.assert_close(found[statistic][n], expected, rtol=1e-8, atol=tolerance)


@pytest.mark.parametrize("criterion", ["magnitude", "qm", "wanda", "sparsegpt"])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_pruned_and_trained_on_with_its_zeros(name: str, criterion: str) -> None:
    network, given = made(name), batches(name)
    pruning = pk.prune(network, given, criterion, sparsity=0.5, steps=1, memory=2 << 30)
    assert pruning.sparsity == pytest.approx(0.5, abs=0.01)

    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    pruning.attach(optimizer)
    for x, y in given:
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    assert all(not network.get_parameter(n)[~m].any() for n, m in pruning.masks.items())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_run_takes_its_weights_from_a_file_and_gives_them_to_timm(name: str, tmp_path: Path) -> None:
    import timm

    trained = made(name)
    save_file(trained.state_dict(), tmp_path / "trained.safetensors")
    x, y = (torch.cat(part) for part in zip(*batches(name), strict=True))
    np.savez(tmp_path / "data.npz", train_x=x, train_y=y)
    spec = {
        "version": 1, "device": "cpu",
        "model": {
            "name": "timm", "model": name, "kwargs": NETWORKS[name], "checkpoint": str(tmp_path / "trained.safetensors"),
        },
        "dataset": {"name": "npz", "path": str(tmp_path / "data.npz")},
        "prune": {"criterion": "wanda", "scheduler": {"name": "one_shot", "sparsity": 0.5}},
    }  # fmt: skip
    results = pk.run(spec, tmp_path / "run.h5")
    results.export(tmp_path / "pruned.safetensors", tmp_path / "masks.safetensors")

    loaded = timm.create_model(
        name, checkpoint_path=str(tmp_path / "pruned.safetensors"), num_classes=10, in_chans=1, **NETWORKS[name]
    )  # fmt: skip
    pk.apply_masks(trained, load_file(tmp_path / "masks.safetensors"))
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), trained(x))


def test_what_it_does_not_have_is_told_with_what_is_near() -> None:
    data = pk.DataInfo((1, 8, 8), 10, "classification")
    with pytest.raises(pk.SpecError, match=r"timm has no architecture 'test_res'; it has .*test_resnet"):
        component("model", {"name": "timm", "model": "test_res"}).build(data)
    with pytest.raises(pk.SpecError, match=r"test_vit with .* cannot be built: "):
        component("model", {"name": "timm", "model": "test_vit", "kwargs": {"patch": 2}}).build(data)
