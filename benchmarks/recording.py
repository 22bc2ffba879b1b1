"""What recording costs: `python benchmarks/main_job.py --records`.

Steps are written one after the other as a run would, without the run around them: time, bytes and memory of a step,
and what the file takes in the end. The process with 10⁸ weights is one of its own, so that its peak is its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from timing import median, ratio

from prunekit.results import ResultsWriter
from prunekit.results.claim import claimed

STEPS, WEIGHTS = 2_000, 10_000_000
ROUNDS = 11
EDGE = 100  # steps at the beginning and at the end that are compared
METRICS = ("train_loss", "valid_loss", "test_loss", "train_error", "valid_error", "test_error")

Row = list[object]


def written() -> int:
    """Bytes that this process has asked to write so far."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["wchar"])


def memory(key: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) << 10


def steps(
    path: Path, shapes: Mapping[str, tuple[int, ...]], count: int, last: float = 0.98
) -> Iterator[tuple[float, int]]:
    """Seconds and bytes of each step of a ``random`` run, which takes as many weights at each."""
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    draw = np.random.default_rng(0)
    parts = np.array_split(draw.permutation(total)[: int(last * total)], count)
    kept = np.ones(total, dtype=bool)
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])[:-1]
    masks = {n: m.reshape(s) for (n, s), m in zip(shapes.items(), np.split(kept, ends), strict=True)}
    writer = ResultsWriter(path)
    writer.create("benchmark", {}, {}, "", {}, shapes, METRICS, total_steps=count)
    metrics = dict.fromkeys(METRICS, 0.5)
    dense = {n: draw.standard_normal(shape, dtype=np.float32) for n, shape in shapes.items()}
    writer.add_phase("dense", metrics, dense)
    pruned = 0
    for step, part in enumerate(parts, 1):
        kept[part] = False
        pruned += len(part)
        row = {"step": step, "pruned": pruned, "remaining": total - pruned, "sparsity": pruned / total}
        row |= {"target_sparsity": pruned / total, "delta_loss": 0.0, "seconds": 0.0, **metrics}
        layers = {n: 1 - np.count_nonzero(m) / m.size for n, m in masks.items()}
        examples = draw.permutation(50_000)[:1000]
        before, start = written(), time.perf_counter()
        writer.add_step({**row, "layers": layers}, masks, examples, False)
        yield time.perf_counter() - start, written() - before
    writer.add_phase("pruned", metrics, {n: dense[n] * mask for n, mask in masks.items()})
    writer.finish("complete", {})


def long_run(folder: Path) -> list[Row]:
    path = folder / "long.h5"
    shapes = {f"layer{i}": (1000, 1000) for i in range(10)}
    run = steps(path, shapes, STEPS)
    early = [next(run) for _ in range(STEPS - EDGE)]
    again = steps(folder / "again.h5", shapes, STEPS)
    # In turns, so that the machine's speed is the same for both.
    pairs = [(next(again), next(run)) for _ in range(EDGE)]
    next(run, None)  # to its end
    seconds = {"first": [first for (first, _), _ in pairs], "last": [last for _, (last, _) in pairs]}
    sizes = [count for _, count in early + [last for _, last in pairs]]
    size = (path.stat().st_size - 2 * 4 * WEIGHTS) / WEIGHTS
    label = f"{STEPS} steps of random on 10 M weights"
    path.unlink()
    return [
        [
            f"{label}: the last {EDGE} / the first",
            f"{1e3 * median(seconds, 'last'):.0f} ms",
            ratio(seconds, "last", "first"),
            "≤ 1.2",
        ],
        ["… bytes written per step and weight, most", "", max(sizes) / WEIGHTS, "≤ 8"],
        ["… file beyond the networks, bytes per weight", "", size, "≤ 4"],
    ]


def many_tensors(folder: Path) -> list[Row]:
    shapes = {f"tensor{i}": (10, 10) for i in range(5_000)}
    seconds = [found for found, _ in steps(folder / "many.h5", shapes, 14)]
    return [["a step of 5,000 tensors of 100 weights", f"{statistics.median(seconds):.3f} s", "", "≤ 0.5 s"]]


def owned(folder: Path) -> list[Row]:
    """A step of an output with an owner: its token is checked, and the disk is waited for once a second."""
    shapes = {"fc.0.weight": (300, 784), "fc.1.weight": (100, 300), "fc.2.weight": (10, 100)}
    seconds: dict[str, list[float]] = {"owned": [], "plain": []}
    with claimed(folder / "owned.h5"):
        for _ in range(ROUNDS):
            pair = [steps(folder / f"{name}.h5", shapes, 140) for name in seconds]
            found = [[next(run)[0] for run in pair] for _ in range(140)]
            for name, each in zip(seconds, zip(*found, strict=True), strict=True):
                seconds[name].append(sum(each) / 140)
    label = "a step of the MLP with an owner and waits for the disk / without"
    return [[label, f"{1e3 * median(seconds, 'owned'):.1f} ms", ratio(seconds, "owned", "plain"), "≤ 1.1"]]


def large(folder: Path) -> list[Row]:
    done = subprocess.run(
        [sys.executable, __file__, folder / "large.h5"], check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    label = "a step of magnitude on 10⁸ weights"
    return [
        [f"{label}, recorded", f"{found['seconds']:.1f} s", "", "≤ 5 s"],
        ["… of which recording", f"{found['recording']:.1f} s", "", ""],
        ["… memory above the network", f"{found['memory'] / 1e9:.2f} GB", "", "≤ 1.6 GB"],
    ]


def _large(path: Path) -> None:
    """One network of 10⁸ weights through three steps, with the recorder that a run has."""
    import torch

    from prunekit.observing.moment import Surroundings
    from prunekit.plugins.build import as_loss, component, estimators
    from prunekit.pruning.sample import Sample
    from prunekit.pruning.step import Pruner
    from prunekit.records import RunView
    from prunekit_plugins.recorders.hdf5 import HDF5

    model = torch.nn.Linear(10_000, 10_000, bias=False).eval()
    batches = [(torch.randn(1, 10_000), torch.tensor([1]))]
    network = memory("VmRSS")
    pruner = Pruner(
        Surroundings(model, as_loss("cross_entropy"), estimators),
        component("criterion", "magnitude"),
        component("scheduler", {"name": "explicit", "levels": [0.5, 0.75, 0.9]}),
        component("selector", "global"),
    )
    view = RunView(
        path,
        {"prune": {"sample": "fresh", "examples": 1}},
        {},
        "",
        {},
        {layer.name: layer.shape for layer in pruner.layers},
        METRICS,
        weights={"dense": {"weight": model.weight.detach().numpy()}},
        metrics={"dense": {"train_loss": 0.5}},
        total_steps=3,
    )
    recorder = HDF5()
    recorder.started(view)
    recorder.phase_finished(view, "dense")
    seconds, recording, peak = [], [], 0
    outcomes = pruner.outcomes(lambda index: Sample(batches, torch.Generator()))
    for _ in range(3):
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        start = time.perf_counter()
        record = next(outcomes).step
        view.masks = {name: mask.numpy() for name, mask in pruner.masks.items()}
        view.examples = np.arange(1)
        middle = time.perf_counter()
        recorder.step_finished(view, record)
        end = time.perf_counter()
        seconds.append(end - start)
        recording.append(end - middle)
        peak = max(peak, memory("VmHWM"))
    found = {"seconds": max(seconds), "recording": max(recording), "memory": peak - network}
    print(json.dumps(found))


def rows(folder: Path) -> list[Row]:
    """Figures with their targets."""
    return owned(folder) + many_tensors(folder) + large(folder) + long_run(folder)


if __name__ == "__main__":
    _large(Path(sys.argv[1]))
