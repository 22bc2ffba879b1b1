"""What would go wrong on a GPU, or under a process's own defaults, and can be seen without a GPU."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from waiting import Waiting

import prunekit as pk
from prunekit.network.devices import device_errors
from prunekit.plugins.host import default_manager

STATISTICS = default_manager().names("statistic")
CRITERIA = default_manager().names("criterion")


RUN = {
    "version": 1,
    "device": "cpu",
    "model": {"name": "mlp", "hidden": [5]},
    "dataset": "digits",
    "train": {"epochs": 2, "optimizer": {"name": "adam", "lr": 0.01}},
    "prune": {"criterion": "qm", "scheduler": {"name": "one_shot", "sparsity": 0.5}, "examples": 4},
    "probes": [{"name": "line", "points": 3, "examples": 4}],
}


@pytest.fixture
def model() -> nn.Module:
    layers = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.Tanh()
    return nn.Sequential(*layers, nn.Linear(5, 3))


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    x, y = torch.randn(18, 2, 6, 6), torch.randint(3, (18,))
    return [(x[:11], y[:11]), (x[11:], y[11:])]


@contextmanager
def dtype(chosen: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(chosen)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# What is made on the meta device has no values: whatever needs them fails, and so does what mixes devices.
DEFAULTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "device meta": lambda: torch.device("meta"),
    "dtype float64": lambda: dtype(torch.float64),
    "dtype bfloat16": lambda: dtype(torch.bfloat16),
}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    pairs = [(value, other[name]) for name, value in one.items()]
    return one.keys() == other.keys() and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_statistic_does_not_depend_on_the_processs_defaults(statistic, default, model, batches) -> None:
    expected = dict(pk.statistics(model, batches, [statistic], seed=3)[statistic])
    with DEFAULTS[default]():
        values = dict(pk.statistics(model, batches, [statistic], seed=3)[statistic])
    assert same(values, expected)


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_criterion_does_not_depend_on_the_processs_defaults(criterion, default, model, batches) -> None:
    def pruned() -> dict[str, Tensor]:
        copied = copy.deepcopy(model)
        masks = pk.prune(copied, batches, criterion, sparsity=0.5, steps=2).masks
        return {**masks, **{f"value of {name}": p.detach() for name, p in copied.named_parameters()}}

    expected = pruned()
    with DEFAULTS[default]():
        assert same(pruned(), expected)


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("kind", ["ggn", "hessian", "empirical_fisher"])
def test_a_product_does_not_depend_on_the_processs_defaults(kind, default, model, batches) -> None:
    vector = {name: torch.ones_like(p) for name, p in model.named_parameters() if p.ndim > 1}
    expected = pk.operator(model, batches, kind) @ vector
    with DEFAULTS[default]():
        assert same(pk.operator(model, batches, kind) @ vector, expected)


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("dataset", ["digits", "xor", "gaussians"])
def test_a_run_does_not_depend_on_the_processs_defaults(dataset, default, tmp_path: Path) -> None:
    spec = {**RUN, "dataset": dataset}
    with pk.run(spec, tmp_path / "expected.h5") as results:
        expected = results.weights("pruned"), results.summary["steps"][0]["delta_loss"]
    with DEFAULTS[default](), pk.run(spec, tmp_path / "out.h5") as results:
        weights, change = results.weights("pruned"), results.summary["steps"][0]["delta_loss"]
    assert change == expected[1]
    assert all((weights[name] == value).all() for name, value in expected[0].items())


def test_an_autocast_around_a_call_does_not_reach_it(model, batches, tmp_path: Path) -> None:
    def everything() -> list[Any]:
        pruned = copy.deepcopy(model)
        steps = pk.prune(pruned, batches, "qm", sparsity=0.5, steps=2).steps
        with pk.run(RUN, tmp_path / "out.h5", overwrite=True) as results:
            trained = results.weights("dense")
        return [
            *pk.statistics(model, batches, ["ggn_diagonal"])["ggn_diagonal"].values(),
            *(p.detach() for p in pruned.parameters()),
            *(step.delta_loss for step in steps),
            *map(torch.from_numpy, trained.values()),
        ]

    expected = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = everything()
        assert torch.is_autocast_enabled("cpu")
    assert all(
        torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(found, expected, strict=True)
    )


def test_a_models_own_autocast_is_part_of_it(model, batches) -> None:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.inner(x)

    exact = pk.statistics(model, batches, ["gradient"])["gradient"]["4.weight"]
    cast = pk.statistics(Casting(), batches, ["gradient"])["gradient"]["inner.4.weight"]
    assert cast.dtype == torch.float32
    assert 0 < float((cast - exact).norm()) < 0.1 * float(exact.norm())


# -- a full memory, several devices ----------------------------------------------------------------


class Greedy(nn.Module):
    """Takes more memory than there is, once it is told to."""

    calls: ClassVar[list[Any]] = []  # not the module's: that every pass would find as it was

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.calls.clear()

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(None)
        if len(self.calls) > 8:
            held = torch.zeros(1000, 1000)
            self.calls[0] = weakref.ref(held)
            torch.empty(1 << 50)
        return self.inner(x)


@pytest.mark.parametrize("criterion", ["magnitude", "qm", "obs_rows"])
def test_a_full_memory_is_told_in_a_line_and_leaves_the_model_as_it_was(criterion, model, batches) -> None:
    greedy = Greedy(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        pk.RunError, match=r"^out of memory: .*allocate 4503599627370496 bytes.*\(memory\)"
    ) as error:
        pk.prune(greedy, batches, criterion, sparsity=0.9, steps=9)
    assert error.value.__cause__ is not None
    assert greedy.calls[0]() is None  # though the error is still at hand
    assert greedy.training
    # Steps that were done stay done; of the one that failed nothing is left.
    weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    assert all(bool(((p == before[name]) | (p == 0)).all()) for name, p in weights.items())
    total = sum(p.numel() for p in weights.values())
    levels = {round((1 - 0.1 ** (step / 9)) * total) for step in range(9)}
    assert sum(int((p == 0).sum()) for p in weights.values()) in levels


def test_cudas_own_words_become_one_line() -> None:
    said = (
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.19 GiB of which 12.31 MiB is "
        "free. Including non-PyTorch memory, this process has 78.97 GiB memory in use. If reserved but unallocated memory "
        "is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
    )
    with pytest.raises(pk.RunError) as error, device_errors():
        raise torch.OutOfMemoryError(said)
    assert str(error.value) == (
        "out of memory: Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.19 GiB of which 12.31 MiB is free. "
        "Allow less for activations and products (memory), take fewer examples, or free the device"
    )


@pytest.mark.parametrize("part", ["model", "input", "target"])
def test_what_lies_on_several_devices_is_refused_with_the_way_out(part, model, batches) -> None:
    if part == "model":
        model[4].to("meta")
    batches = [
        (x.to("meta") if part == "input" else x, y.to("meta") if part == "target" else y) for x, y in batches
    ]
    for call in (
        lambda: pk.statistics(model, batches, ["gradient"]),
        lambda: pk.prune(model, batches, "magnitude", sparsity=0.5, steps=1),
    ):
        with pytest.raises(pk.DeviceError, match=r"meta.*must be on one device: move the model"):
            call()


def test_other_errors_of_a_model_stay_what_they_are(batches) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as error:
        pk.statistics(nn.Linear(3, 3), batches, ["gradient"])
    assert not isinstance(error.value, pk.PrunekitError)


# -- waiting for a GPU -----------------------------------------------------------------------------


def waits(criterion: str, layers: int, steps: int) -> dict[str, int]:
    """Where the steps of a pruning ask for values, how often."""
    widths = [nn.Linear(6, 6) for _ in range(layers)]
    model = nn.Sequential(*widths, nn.Linear(6, 3))
    batch = torch.randn(40, 6), torch.randint(3, (40,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "is_cpu", False, raising=False)  # the ways that a device takes
        with Waiting() as waiting:
            pk.prune(model, [batch], criterion, sparsity=0.5, steps=steps)
    return dict(waiting.lines)


CORE, PLUGINS = "core/prunekit", "plugins/prunekit_plugins"
MEASURED = {
    # What goes is chosen; it is finite, nested, of the right number, without ties; how much is left of each layer.
    f"{CORE}/masks/weights.py read_together": 5,
    f"{CORE}/network/measure.py _measured": 2,  # the loss after the step, and the errors
    f"{PLUGINS}/losses/cross_entropy.py errors": 1,
    f"{PLUGINS}/losses/cross_entropy.py normaliser": 2,
}
READ = {
    **MEASURED,
    f"{CORE}/statistics/estimate.py sums": 1,  # the loss before it
    f"{CORE}/network/noise.py _moved": 1,  # of random states, which lie on the CPU: no wait
}
# Without statistics, the loss before it is measured too.
BEFORE = {
    **MEASURED,
    f"{CORE}/network/measure.py _measured": 4,
    f"{PLUGINS}/losses/cross_entropy.py errors": 2,
}
PREDICTED = {**READ, f"{PLUGINS}/criteria/_taylor.py predicted_delta_loss": 1}


@pytest.mark.parametrize("layers", [1, 5])
@pytest.mark.parametrize(
    ("criterion", "expected"),
    [("lm", PREDICTED), ("qm", PREDICTED), ("obd", PREDICTED), ("magnitude", BEFORE)],
)
def test_a_step_waits_for_the_device_where_the_design_says_however_many_layers(
    criterion, expected, layers
) -> None:
    few, many = waits(criterion, layers, 2), waits(criterion, layers, 6)
    by_step = {where: (many[where] - few.get(where, 0)) / 4 for where in many}
    # On a GPU only versions are looked at, to see what a criterion has left alone.
    by_step.pop(f"{CORE}/pruning/change.py _bits")
    assert {where: number for where, number in by_step.items() if number} == expected
