"""What a sweep costs beside its runs: `python benchmarks/sweep.py [--quick]`.

Prints one table: a sweep of short runs against the same runs one after another in one process; two workers against one; and
the table and the list of a folder of 1,000 finished runs. The runs train a small network on random numbers.
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

import numpy as np
from timing import show

import prunekit as pk
from prunekit.sweeps.plan import load

BASE = {
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
    (folder / f"{name}.yaml").write_text(json.dumps({"base": BASE, "seeds": seeds}))
    start = time.perf_counter()
    command = [sys.executable, "-m", "prunekit_cli", "sweep", str(folder / f"{name}.yaml"), *more]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "prunekit_cli", *command], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few runs, to see that it works")
    quick = parser.parse_args().quick
    count, many = (4, 20) if quick else (24, 1000)
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data(folder, 500 if quick else 20_000)
        os.environ["OMP_NUM_THREADS"] = "1"
        one = sweep(folder, "one", count, "--workers", "1", "--threads", "1")
        two = sweep(folder, "two", count, "--workers", "2", "--threads", "1")
        rows.append(
            [f"{count} runs, one worker / two", f"{one:.1f} s / {two:.1f} s", f"{one / two:.2f}", ">= 1.7"]
        )
        plan = load(folder / "one.yaml")
        # The first pays for the start of torch, here as in a sweep of one.
        pk.run({**BASE, "seed": count, "folder": scratch}, folder / "first.h5").close()
        start = time.perf_counter()
        for planned in plan.runs:
            pk.run(
                {**BASE, "seed": planned.parameters["seed"], "folder": scratch}, folder / f"{planned.key}.h5"
            ).close()
        alone = time.perf_counter() - start
        start_up = sweep(folder, "single", 1) - alone / count
        each = 1e3 * (sweep(folder, "inline", count) - start_up - alone) / count
        rows.append(["beside a run, start-up left out", f"{each:.0f} ms", "", "< 50 ms"])
        big = folder / "big"
        big.mkdir()
        (folder / "big.yaml").write_text(json.dumps({"base": BASE, "seeds": many}))
        runs = load(folder / "big.yaml").runs
        source = folder / "one" / f"{plan.runs[0].key}.h5"
        for planned in runs:
            shutil.copy(source, big / f"{planned.key}.h5")
        record = {"format": "prunekit-sweep", "runs": {one.key: one.parameters for one in runs}}
        (big / "sweep.json").write_text(json.dumps(record))
        first = seconds("inspect", str(big))
        again = seconds("inspect", str(big))
        listed = seconds("sweep", str(folder / "big.yaml"), "--dry-run")
        rows.append(
            [
                f"inspect of {many} runs, without an index / with",
                f"{first:.1f} s / {again:.1f} s",
                "",
                "< 2 s",
            ]
        )
        rows.append([f"--dry-run of {many} runs", f"{listed:.1f} s", "", "< 2 s"])
    show("Sweeps", ["what", "time", "ratio", "target"], rows)


if __name__ == "__main__":
    main()
