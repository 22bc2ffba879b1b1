"""What a GPU must not change. Without one these tests are skipped, and say so.

``PRUNEKIT_TEST_GPU=cpu`` puts the CPU in the GPU's place, to try the tests themselves.
"""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, float32, float64, nn
from traits import INPUTS, TRAITS, measures_its_own_change_or_refuses, right_or_refused

import prunekit as pk
from prunekit.masks.items import prune_smallest
from prunekit.network.restore import full_float32
from prunekit.observing.listener import Listener
from prunekit.plugins.host import default_manager
from prunekit.training.loop import Trainer
from prunekit.training.settings import SGD, Train

GPU = os.environ.get("PRUNEKIT_TEST_GPU", "cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        GPU == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"
    ),
]
real = pytest.mark.skipif(GPU != "cuda", reason="needs a CUDA device itself")

STATISTICS = default_manager().names("statistic")
CRITERIA = default_manager().names("criterion")
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
DEVICES = ("cpu", GPU)


def moved(data: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    return data.to(device, dtype) if data.is_floating_point() else data.to(device)


def small(device: str, dtype: torch.dtype = float64) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.Tanh()
    model = nn.Sequential(*layers, nn.Linear(5, 3)).to(device, dtype)
    x, y = torch.randn(40, 2, 6, 6).to(dtype), torch.randint(3, (40,))
    return model, [(x[:23].to(device), y[:23].to(device)), (x[23:].to(device), y[23:].to(device))]


def assert_close(values: Any, expected: Any, rtol: float, what: object = "", largest: float = 1e-2) -> None:
    # What cancels to nothing is the rounding of the largest.
    bound = rtol * float(expected.abs().max()) + 1e-2 * rtol * largest
    assert values.device.type == torch.device(GPU).type, what
    assert float((values.cpu() - expected).abs().max()) <= bound, what


@pytest.mark.parametrize("dtype", [float64, float32])
@pytest.mark.parametrize("name", NAMES)
def test_statistics_and_products_agree_with_the_cpus(build, name, dtype) -> None:
    network = build(name)
    diagonals = [
        "gradient",
        "ggn_diagonal",
        "ggn_mc_diagonal",
        "empirical_fisher_diagonal",
        "hessian_diagonal",
    ]
    by_device = {}
    for device in DEVICES:
        model = copy.deepcopy(network.model).to(device, dtype)
        batches = [(moved(x, device, dtype), y.to(device)) for x, y in network.batches()]
        by_device[device] = dict(pk.statistics(model, batches, diagonals, parameters="all"))
        # Not ones, which shift all logits alike: then the products are nothing but rounding.
        draws = torch.Generator().manual_seed(0)
        vector = {
            n: torch.randn(p.shape, generator=draws, dtype=float64).to(device, dtype)
            for n, p in model.named_parameters()
        }
        for kind in ("ggn", "hessian", "empirical_fisher"):
            operator = pk.operator(model, batches, kind, parameters="all")
            by_device[device][kind] = operator @ vector
    for statistic, expected in by_device["cpu"].items():
        largest = max(float(value.abs().max()) for value in expected.values())
        for key, value in expected.items():
            rtol = 1e-9 if dtype == float64 else 1e-4
            assert_close(by_device[GPU][statistic][key], value, rtol, (statistic, key), largest)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of what is awkward here
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("trait", TRAITS)
def test_a_network_with_a_trait_is_right_or_refused(trait, inputs) -> None:
    right_or_refused(trait, inputs, GPU)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("criterion", ["magnitude", "qm", "obs_rows"])
@pytest.mark.parametrize("trait", TRAITS)
def test_pruning_a_network_with_a_trait_measures_its_own_change_or_refuses(trait, criterion) -> None:
    measures_its_own_change_or_refuses(trait, criterion, GPU)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_every_statistic_is_the_cpus(statistic) -> None:
    by_device = {device: pk.statistics(*small(device), [statistic], seed=1)[statistic] for device in DEVICES}
    for name, value in by_device["cpu"].items():
        assert_close(by_device[GPU][name], value, 1e-8, name)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_prunes_as_on_the_cpu(criterion) -> None:
    prunings, models = {}, {}
    for device in DEVICES:
        models[device], batches = small(device)
        prunings[device] = pk.prune(models[device], batches, criterion, sparsity=0.7, steps=3, lam=1e-3)
    for name, mask in prunings["cpu"].masks.items():
        there = prunings[GPU].masks[name]
        assert there.device.type == torch.device(GPU).type
        assert torch.equal(there.cpu(), mask), name
    for name, p in models["cpu"].named_parameters():
        assert_close(models[GPU].get_parameter(name).detach(), p.detach(), 1e-6, name)
    for there, here in zip(prunings[GPU].steps, prunings["cpu"].steps, strict=True):
        assert there.delta_loss == pytest.approx(here.delta_loss, rel=1e-6, abs=1e-10)
        if here.predicted_delta_loss is None:
            assert there.predicted_delta_loss is None
        else:
            assert there.predicted_delta_loss == pytest.approx(here.predicted_delta_loss, rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("selector", ["layerwise", {"name": "nm", "n": 2, "m": 4}])
def test_selectors_choose_as_on_the_cpu(selector) -> None:
    masks = {}
    for device in DEVICES:
        model, batches = small(device)
        inner = {"include": ["4.weight"]}
        pruning = pk.prune(model, batches, "lm", selector=selector, sparsity=0.5, steps=1, prunable=inner)
        masks[device] = {name: mask.cpu() for name, mask in pruning.masks.items()}
    assert all(torch.equal(masks[GPU][name], mask) for name, mask in masks["cpu"].items())


@pytest.mark.parametrize("statistic", ["gradient", "ggn_diagonal", "input_second_moment", "inverse_rows"])
def test_no_setting_for_speed_touches_a_statistic(statistic) -> None:
    model, batches = small("cpu")
    exact = pk.statistics(model, batches, [statistic])[statistic]
    model, batches = small(GPU, float32)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    try:
        with torch.autocast(GPU, dtype=torch.bfloat16):
            values = pk.statistics(model, batches, [statistic])[statistic]
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    for name, value in exact.items():
        assert_close(values[name].double(), value, 1e-4, name)


@real
def test_reduced_precision_is_off_inside_and_as_it_was_outside() -> None:
    matmul = torch.backends.cuda.matmul
    keys = "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"
    before = [getattr(matmul, key) for key in keys]
    with full_float32():
        assert not any(getattr(matmul, key) for key in keys)
    assert [getattr(matmul, key) for key in keys] == before


@pytest.mark.parametrize("statistic", ["gradient", "ggn_diagonal", "empirical_fisher_diagonal"])
def test_networks_of_half_precision_have_statistics_in_float32_near_the_exact_ones(statistic) -> None:
    model, batches = small("cpu", float32)
    exact = pk.statistics(model, batches, [statistic])[statistic]
    model, batches = small(GPU, torch.bfloat16)
    values = pk.statistics(model, batches, [statistic])[statistic]
    for name, value in exact.items():
        assert values[name].dtype == float32
        assert float((values[name].cpu() - value).norm()) < 0.1 * float(value.norm()), name


@pytest.mark.parametrize("values", ["normal", "few"])
def test_selection_is_the_cpus(values) -> None:
    scores = torch.randn(300_000).abs()
    if values == "few":
        scores = (scores * 3).floor()
    saliency = {"a": scores[:100_000].view(100, -1), "b": scores[100_000:]}
    masks = {k: torch.ones_like(v, dtype=torch.bool) for k, v in saliency.items()}
    there = {k: v.to(GPU) for k, v in saliency.items()}
    for budget in (1, 1000, 150_000, 299_000):
        expected = prune_smallest(saliency, masks, budget)
        chosen = prune_smallest(there, {k: v.to(GPU) for k, v in masks.items()}, budget)
        assert all(torch.equal(chosen[k].cpu(), expected[k]) for k in expected)


class Keyed(nn.Sequential):
    """Takes its input as two keyword arguments."""

    def forward(self, *, left, right):
        return {"logits": super().forward(torch.cat([left, right], 1))}


@real
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


def test_a_run_is_resumed_where_it_stopped(tmp_path: Path) -> None:
    class Stops(Listener):
        def step(self, record: pk.StepRecord) -> None:
            raise KeyboardInterrupt

    spec = {
        "version": 1,
        "device": GPU,
        "dtype": "float64",
        "model": {"name": "mlp", "hidden": [5]},
        "dataset": "xor",
        "train": {"epochs": 4, "batch_size": 2, "optimizer": {"name": "adam", "lr": 0.01}},
        "prune": {"criterion": "qm", "scheduler": {"name": "linear", "sparsity": 0.6, "steps": 3}},
        "finetune": {"epochs": 2, "batch_size": 2, "optimizer": {"name": "sgd", "lr": 0.01}},
        "probes": ["line"],
    }
    with pytest.raises(KeyboardInterrupt):
        pk.run(spec, tmp_path / "stopped.h5", listener=Stops())
    with (
        pk.run(spec, tmp_path / "stopped.h5", resume=True) as resumed,
        pk.run(spec, tmp_path / "whole.h5") as whole,
    ):
        for phase in ("dense", "pruned", "finetuned"):
            for name, value in whole.weights(phase).items():
                torch.testing.assert_close(
                    torch.as_tensor(resumed.weights(phase)[name]),
                    torch.as_tensor(value),
                    rtol=1e-9,
                    atol=1e-12,
                )
        assert len(resumed.summary["steps"]) == 3


def test_masks_may_come_from_the_cpu() -> None:
    model, batches = small(GPU)
    masks = {"4.weight": torch.rand(5, 64) > 0.5}
    saliency = pk.saliency(model, batches, "lm", masks=masks)
    assert not saliency["4.weight"].cpu()[~masks["4.weight"]].any()
    pk.apply_masks(model, masks)
    assert not model[4].weight.detach().cpu()[~masks["4.weight"]].any()


@real
@pytest.mark.parametrize("part", ["input", "target", "model"])
def test_two_devices_are_refused_with_the_way_out(part) -> None:
    model, batches = small("cuda")
    if part == "model":
        model[4].cpu()
    batches = [(x.cpu() if part == "input" else x, y.cpu() if part == "target" else y) for x, y in batches]
    with pytest.raises(pk.DeviceError, match="must be on one device"):
        pk.statistics(model, batches, ["gradient"])


@real
def test_out_of_memory_is_one_line_and_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(2000, 2000), nn.Tanh(), nn.Linear(2000, 10)).cuda()
    batch = torch.randn(20_000, 2000, device="cuda"), torch.randint(10, (20_000,), device="cuda")
    before = copy.deepcopy(model.state_dict())
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (40 << 20)) / total)
    try:
        with pytest.raises(pk.RunError, match=r"^out of memory: Tried to allocate") as error:
            pk.prune(model, [batch], "qm", sparsity=0.5, steps=2, memory=free)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@real
def test_a_step_waits_for_the_device_only_where_the_design_says() -> None:
    model, batches = small("cuda")

    def waits(steps: int) -> int:
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("ignore")  # that this mode is a prototype
                torch.cuda.set_sync_debug_mode("warn")
                warnings.simplefilter("always")
                pk.prune(copy.deepcopy(model), batches, "qm", sparsity=0.5, steps=steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(w.message) for w in caught)

    waits(2)  # examines the network
    assert (waits(12) - waits(2)) / 10 <= 20
