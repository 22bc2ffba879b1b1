"""What a GPU must not change. Without one these tests are skipped, and say so."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import float32, float64, nn

import prunekit as pk
from prunekit.masks.items import prune_smallest
from prunekit.training.loop import Trainer
from prunekit.training.settings import SGD, Train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]

DIAGONALS = ["gradient", "ggn_diagonal", "ggn_mc_diagonal", "empirical_fisher_diagonal", "hessian_diagonal"]
NAMES = [
    "linear",
    "groups",
    "transposed",
    "conv_3d",
    "batch_norm",
    "attention",
    "tokens_and_layer_norm",
    "mixture",
]


def moved(data, device, dtype):
    return data.to(device, dtype) if data.is_floating_point() else data.to(device)


@pytest.mark.parametrize("dtype", [float64, float32])
@pytest.mark.parametrize("name", NAMES)
def test_statistics_and_products_agree_with_the_cpus(build, name, dtype) -> None:
    network = build(name)
    found = {}
    for device in ("cpu", "cuda"):
        model = copy.deepcopy(network.model).to(device, dtype)
        batches = [(moved(x, device, dtype), y.to(device)) for x, y in network.batches()]
        found[device] = dict(pk.statistics(model, batches, DIAGONALS, parameters="all"))
        vector = {n: torch.ones_like(p) for n, p in model.named_parameters()}
        for kind in ("ggn", "hessian", "empirical_fisher"):
            operator = pk.operator(model, batches, kind, parameters="all")
            found[device][kind] = operator @ vector
    rtol = 1e-9 if dtype == float64 else 1e-4
    for statistic, expected in found["cpu"].items():
        for key, value in expected.items():
            got = found["cuda"][statistic][key]
            assert got.device.type == "cuda"
            bound = rtol * float(value.abs().max()) + 1e-4 * rtol
            assert float((got.cpu() - value).abs().max()) <= bound, (statistic, key)


def test_tf32_does_not_touch_a_statistic() -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
    batch = torch.randn(50, 8, 8, 8), torch.randint(10, (50,))
    exact = pk.statistics(copy.deepcopy(model).double(), [(batch[0].double(), batch[1])], ["ggn_diagonal"])
    torch.set_float32_matmul_precision("medium")
    try:
        found = pk.statistics(model.cuda(), [tuple(t.cuda() for t in batch)], ["ggn_diagonal"])
    finally:
        torch.set_float32_matmul_precision("highest")
    for name, value in exact["ggn_diagonal"].items():
        error = (found["ggn_diagonal"][name].cpu().double() - value).abs().max() / value.abs().max()
        assert float(error) < 1e-5


@pytest.mark.parametrize("values", ["normal", "few"])
def test_selection_is_the_cpus(values) -> None:
    scores = torch.randn(300_000).abs()
    if values == "few":
        scores = (scores * 3).floor()
    saliency = {"a": scores[:100_000].view(100, -1), "b": scores[100_000:]}
    masks = {k: torch.ones_like(v, dtype=torch.bool) for k, v in saliency.items()}
    there = {k: v.cuda() for k, v in saliency.items()}
    for budget in (1, 1000, 150_000, 299_000):
        expected = prune_smallest(saliency, masks, budget)
        found = prune_smallest(there, {k: v.cuda() for k, v in masks.items()}, budget)
        assert all(torch.equal(found[k].cpu(), expected[k]) for k in expected)


class Keyed(nn.Sequential):
    """Takes its input as two keyword arguments."""

    def forward(self, *, left, right):
        return {"logits": super().forward(torch.cat([left, right], 1))}


@pytest.mark.parametrize("mapped", [False, True])
def test_a_captured_training_step_trains_as_an_eager_one(monkeypatch, mapped) -> None:
    settings = Train(
        epochs=1, batch_size=50, optimizer=SGD(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-3)
    )
    x = torch.randn(1020, 20).cuda()
    inputs = {"left": x[:, :8], "right": x[:, 8:]} if mapped else x
    split = pk.Split(inputs, torch.randint(3, (1020,)).cuda())
    layers = nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 3)
    start = (Keyed if mapped else nn.Sequential)(*layers).cuda()
    masks = {"0.weight": torch.rand(30, 20) > 0.5}
    trained = []
    for captured in (True, False):
        model = copy.deepcopy(start)
        if not captured:
            monkeypatch.setattr("prunekit.training.loop.CapturedStep", lambda step: step)
        from prunekit.plugins.build import as_loss

        trainer = Trainer(model, pk.Splits(split), as_loss("cross_entropy"), settings, 0, "dense", masks)
        trainer.epoch(0)
        trainer.close()
        trained.append(model)
    for one, other in zip(trained[0].parameters(), trained[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert not trained[0][0].weight[~masks["0.weight"].cuda()].any()
