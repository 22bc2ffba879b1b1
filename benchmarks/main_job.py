"""What prunekit itself costs in a run: `python benchmarks/main_job.py [--data DIR] [--records]`.

Prints one table: a training epoch against bare loops, the gradient statistic against a bare forward and
backward, the engine's own share of a 14-step run, start-up, and opening a large results file. DIR holds
MNIST; without it the images are random numbers of MNIST's shape, which cost the same. With ``--records`` it prints
what recording a long run and large networks costs instead (some minutes).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import recording
import torch
from timing import interleaved, median, ratio, show
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import prunekit as pk
from prunekit.losses.base import Loss
from prunekit.plugins.build import as_loss
from prunekit.pruning import sample, step
from prunekit.runs import run as runs
from prunekit.training.loop import Trainer
from prunekit.training.settings import SGD, Train
from prunekit_plugins.models.mlp import MLP

EXAMPLES, BATCH = 50_000, 100
SETTINGS = Train(
    epochs=100, batch_size=BATCH, optimizer=SGD(name="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4)
)


def data(root: Path | None) -> pk.Splits:
    if root is not None:
        from prunekit_plugins.datasets.mnist import MNIST

        return MNIST(root=root).load(1111)
    x = torch.randn(EXAMPLES, 1, 28, 28)
    y = torch.randint(10, (EXAMPLES,))
    return pk.Splits(pk.Split(x, y), pk.Split(x[:10_000], y[:10_000]), pk.Split(x[:10_000], y[:10_000]))


def epochs(splits: pk.Splits) -> list[list[object]]:
    loss: Loss = as_loss("cross_entropy")
    x, y = splits.train.x, splits.train.y

    def bare() -> None:
        model = bare_model
        optimizer = bare_optimizer
        order = torch.randperm(len(x))
        for indices in order.split(BATCH):
            value = nn.functional.cross_entropy(model(x[indices]), y[indices])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    def loader() -> None:
        for inputs, targets in DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True):
            value = nn.functional.cross_entropy(bare_model(inputs), targets)
            bare_optimizer.zero_grad()
            value.backward()
            bare_optimizer.step()

    torch.manual_seed(0)
    bare_model = MLP().build(splits.info)
    bare_optimizer = torch.optim.SGD(
        bare_model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True
    )
    own_model = MLP().build(splits.info)
    masks = {
        n: torch.ones_like(p, dtype=torch.bool) for n, p in own_model.named_parameters() if "weight" in n
    }
    plain = Trainer(own_model, splits, loss, SETTINGS, 0, "dense")
    masked = Trainer(MLP().build(splits.info), splits, loss, SETTINGS, 0, "finetuned", masks)
    tasks = {
        "bare": bare,
        "DataLoader": loader,
        "prunekit": lambda: plain.epoch(0),
        "prunekit, masks held": lambda: masked.epoch(0),
    }
    seconds = interleaved(tasks, 5)
    rows = [
        ["epoch, bare loop over slices, fused SGD", f"{median(seconds, 'bare'):.2f} s", 1.0, ""],
        [
            "epoch, default DataLoader",
            f"{median(seconds, 'DataLoader'):.2f} s",
            ratio(seconds, "DataLoader", "bare"),
            "",
        ],
        [
            "epoch, prunekit",
            f"{median(seconds, 'prunekit'):.2f} s",
            ratio(seconds, "prunekit", "bare"),
            "≤ 1.1",
        ],
    ]
    held = "prunekit, masks held"
    rows.append(
        ["epoch, prunekit holding masks", f"{median(seconds, held):.2f} s", ratio(seconds, held, "bare"), ""]
    )
    return rows


def gradient(splits: pk.Splits) -> list[list[object]]:
    model = MLP().build(splits.info).eval()
    x, y = splits.train.x[:1000], splits.train.y[:1000]
    batches = [(x, y)]

    def bare() -> None:
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()

    tasks = {"bare": bare, "statistic": lambda: pk.statistics(model, batches, ["gradient"])}
    seconds = interleaved(tasks, 31)
    return [
        [
            "gradient statistic / forward and backward, 1000 examples",
            f"{1e3 * median(seconds, 'statistic'):.1f} ms",
            ratio(seconds, "statistic", "bare"),
            "≤ 1.1",
        ]
    ]


def engine(root: Path | None, folder: Path) -> list[list[object]]:
    """Time outside statistics and measuring, from the first boundary to the last."""
    torch.manual_seed(0)
    info = pk.DataInfo((1, 28, 28), 10, "classification")
    checkpoint = folder / "mlp.pt"
    torch.save(MLP().build(info).state_dict(), checkpoint)
    if root is None:
        rng = np.random.default_rng(0)
        arrays = {}
        for name, count in (("train", EXAMPLES), ("valid", 10_000), ("test", 10_000)):
            arrays[f"{name}_x"] = rng.standard_normal((count, 784), dtype=np.float32)
            arrays[f"{name}_y"] = rng.integers(0, 10, count)
        np.savez(folder / "random.npz", **arrays)
        dataset = {"name": "npz", "path": str(folder / "random.npz")}
    else:
        dataset = {"name": "mnist", "root": str(root)}
    spec = {
        "version": 1,
        "model": {"name": "mlp", "checkpoint": str(checkpoint)},
        "dataset": dataset,
        "prune": {"criterion": "qm", "scheduler": {"name": "exponential", "sparsity": 0.98847, "steps": 14}},
    }
    spent = {"work": 0.0, "total": 0.0}

    def timed(function, key):  # type: ignore[no-untyped-def]
        def wrapper(*args, **kwargs):  # type: ignore[no-untyped-def]
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[key] += time.perf_counter() - start

        return wrapper

    saved = sample.estimate, step.measure, runs.metrics, runs._Execution.go
    sample.estimate = timed(saved[0], "work")
    step.measure = timed(saved[1], "work")
    runs.metrics = timed(saved[2], "work")
    runs._Execution.go = timed(saved[3], "total")
    shares = []
    try:
        for turn in range(4):
            spent.update(work=0.0, total=0.0)
            pk.run(spec, folder / "engine.h5", overwrite=True).close()
            if turn:
                shares.append((spent["total"] - spent["work"], spent["total"]))
    finally:
        sample.estimate, step.measure, runs.metrics, runs._Execution.go = saved
    own, total = sorted(shares, key=lambda pair: pair[0] / pair[1])[len(shares) // 2]
    label = f"engine's own time in a 14-step run of {total:.1f} s"
    return [[label, f"{1e3 * own:.0f} ms", f"{100 * own / total:.1f} %", "≤ 3 %"]]


_BARE_TYPER = """
import rich, typer
app = typer.Typer()
@app.command()
def one(): pass
@app.command()
def two(): pass
app(["--help"])
"""
_OWN = "import sys; from prunekit_cli.main import invoke; invoke(['--help'])"


def start_up(folder: Path) -> list[list[object]]:
    def process(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    large = folder / "large.h5"
    spec = {
        "version": 1,
        "model": {"name": "mlp", "hidden": [8]},
        "dataset": "digits",
        "prune": {"criterion": "magnitude", "scheduler": {"name": "one_shot", "sparsity": 0.5}},
    }
    pk.run(spec, large, overwrite=True).close()
    with h5py.File(large, "r+") as file:
        file["weights/dense"].create_dataset("ballast", data=np.zeros(1 << 27, dtype=np.float64))
    size = large.stat().st_size / 1e9
    look = f"import sys; from prunekit_cli.main import invoke; invoke(['inspect', {str(large)!r}])"
    tasks = {
        "bare": lambda: process("-c", _BARE_TYPER),
        "help": lambda: process("-c", _OWN),
        "inspect": lambda: process("-c", look),
    }
    seconds = interleaved(tasks, 7)
    return [
        [
            "prunekit --help / bare Typer app with rich",
            f"{median(seconds, 'help'):.2f} s",
            ratio(seconds, "help", "bare"),
            "≤ 1.5",
        ],
        [
            f"prunekit inspect, file of {size:.1f} GB, whole process",
            f"{median(seconds, 'inspect'):.2f} s",
            "",
            "< 1 s",
        ],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder that holds MNIST/")
    parser.add_argument("--records", action="store_true", help="only what recording costs")
    arguments = parser.parse_args()
    root = arguments.data
    with tempfile.TemporaryDirectory() as folder:
        if arguments.records:
            output(recording.rows(Path(folder)))
            return
        splits = data(root)
        rows = epochs(splits) + gradient(splits) + engine(root, Path(folder)) + start_up(Path(folder))
    output(rows)


def output(rows: list[list[object]]) -> None:
    machine = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    title = f"prunekit's own cost: 784-300-100-10, batch {BATCH}, {machine}"
    shown = [[f"{cell:.2f}" if isinstance(cell, float) else cell for cell in row] for row in rows]
    show(title, ["what", "time", "ratio", "target"], shown)


if __name__ == "__main__":
    main()
