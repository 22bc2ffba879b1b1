"""What a sweep costs beside its runs: `python benchmarks/sweep.py [--quick]`.

Prints one table: a sweep of short runs against the same runs one after another in one process; two workers against one; and
the table and the list of a folder of 1,000 finished runs. The runs train a small network on random numbers. A grid of λ and
criteria from one checkpoint is timed as a sweep and run by run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import show

import prunekit as pk
from prunekit.sweeps.folder import Folder
from prunekit.sweeps.plan import load
from prunekit.sweeps.worker import worker

BASE: dict[str, Any] = {
    "version": 1,
    "model": {"name": "mlp", "hidden": [64]},
    "dataset": {"name": "npz", "path": "data.npz"},
    "train": {"epochs": 2, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.05}},
    "prune": {
        "criterion": {"name": "qm"},
        "scheduler": {"name": "exponential", "sparsity": 0.9, "steps": 5},
        "examples": 200,
    },
}


def data(folder: Path, examples: int) -> None:
    draw = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", examples), ("valid", 500), ("test", 500)):
        arrays[f"{split}_x"] = draw.standard_normal((count, 64), dtype=np.float32)
        arrays[f"{split}_y"] = draw.integers(0, 10, count)
    np.savez(folder / "data.npz", **arrays)


def sweep(folder: Path, name: str, seeds: int, *more: str) -> float:
    """Seconds of a sweep from a shell's point of view."""
    base = {**BASE, "train": {**BASE["train"], "epochs": 8}}
    (folder / f"{name}.yaml").write_text(json.dumps({"base": base, "seeds": seeds}))
    start = time.perf_counter()
    command = [sys.executable, "-m", "prunekit_cli", "sweep", str(folder / f"{name}.yaml"), *more]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "prunekit_cli", *command], check=True, capture_output=True)
    return time.perf_counter() - start


def grid(folder: Path, quick: bool) -> list[object]:
    """6 λ × 4 criteria, a step each, from one network: as a sweep of one worker, and each run alone."""
    examples, split = (200, 500) if quick else (1000, 20_000)
    draw = np.random.default_rng(1)
    arrays = {}
    for name, count in (("train", split), ("valid", split // 4), ("test", split // 4)):
        arrays[f"{name}_x"] = draw.standard_normal((count, 784), dtype=np.float32)
        arrays[f"{name}_y"] = draw.integers(0, 10, count)
    np.savez(folder / "images.npz", **arrays)
    base = {
        "version": 1,
        "folder": str(folder),
        "model": {"name": "mlp", "hidden": [300, 100]},
        "dataset": {"name": "npz", "path": "images.npz"},
        "train": {"epochs": 1, "batch_size": 100, "optimizer": {"name": "sgd", "lr": 0.05}},
    }
    pk.run(base, folder / "dense.h5").close()
    prune = {"criterion": {"name": "qm"}, "scheduler": {"name": "one_shot", "sparsity": 0.5}}
    base |= {"train": None, "prune": {**prune, "examples": examples}}
    base["model"] = {**base["model"], "checkpoint": "dense.h5"}
    parameters = {
        "prune.criterion.name": {"values": ["magnitude", "obd", "lm", "qm"]},
        "prune.criterion.lambda": {"values": [0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]},
    }
    (folder / "grid.yaml").write_text(json.dumps({"base": base, "parameters": parameters}))
    plan = load(folder / "grid.yaml")
    pk.run(base, folder / "warm.h5").close()
    start = time.perf_counter()
    for one in plan.runs:
        pk.run(base, folder / f"{one.key}.h5", one.parameters).close()
    alone = time.perf_counter() - start
    start = time.perf_counter()
    Folder(folder / "grid").begin(plan)
    worker(folder / "grid.yaml", folder / "grid")
    together = time.perf_counter() - start
    return [
        f"{len(plan.runs)} runs from one network, alone / in a sweep",
        f"{alone:.1f} s / {together:.1f} s",
        f"{together / alone:.2f}",
        "<= 0.6",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few runs, to see that it works")
    quick = parser.parse_args().quick
    count, many = (4, 20) if quick else (24, 1000)
    rows: list[list[object]] = []
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data(folder, 500 if quick else 20_000)
        one = sweep(folder, "one", count, "--workers", "1")
        two = sweep(folder, "two", count, "--workers", "2")
        rows.append(
            [f"{count} runs, one worker / two", f"{one:.1f} s / {two:.1f} s", f"{one / two:.2f}", ">= 1.7"]
        )
        (folder / "plan.yaml").write_text(json.dumps({"base": BASE, "seeds": count}))
        plan = load(folder / "plan.yaml")
        # The first pays for the start of torch, here as in a sweep of one.
        pk.run({**BASE, "seed": count, "folder": scratch}, folder / "first.h5").close()
        start = time.perf_counter()
        for planned in plan.runs:
            pk.run(
                {**BASE, "seed": planned.parameters["seed"], "folder": scratch}, folder / f"{planned.key}.h5"
            ).close()
        alone = time.perf_counter() - start
        (folder / "inline.yaml").write_text(json.dumps({"base": BASE, "seeds": count}))
        Folder(folder / "inline").begin(plan)
        start = time.perf_counter()
        worker(folder / "inline.yaml", folder / "inline")
        each = 1e3 * (time.perf_counter() - start - alone) / count
        rows.append(["a run in a sweep beside a run", f"{each:+.0f} ms", "", "< 50 ms"])
        rows.append(grid(folder, quick))
        big = folder / "big"
        big.mkdir()
        (folder / "big.yaml").write_text(json.dumps({"base": BASE, "seeds": many}))
        runs = load(folder / "big.yaml").runs
        source = folder / "inline" / f"{plan.runs[0].key}.h5"
        for planned in runs:
            shutil.copy(source, big / f"{planned.key}.h5")
        record = {"format": "prunekit-sweep", "runs": {one.key: one.parameters for one in runs}}
        (big / "sweep.json").write_text(json.dumps(record))
        first = seconds("inspect", str(big))
        again = seconds("inspect", str(big))
        listed = seconds("sweep", str(folder / "big.yaml"), "--dry-run")
        rows.append(
            [f"inspect of {many} runs / the index built anew", f"{again:.1f} s / {first:.1f} s", "", "< 2 s"]
        )
        rows.append([f"--dry-run of {many} runs", f"{listed:.1f} s", "", "< 2 s"])
    show("Sweeps", ["what", "time", "ratio", "target"], rows)


if __name__ == "__main__":
    main()
