"""Every criterion on one small network: `python benchmarks/criteria.py [--data DIR] [--only NAME ...]`.

DIR holds MNIST's files, or MNIST/; without it the data are scikit-learn's digits. A network of two hidden layers
without biases is trained once; every criterion that is installed then prunes it by a spec of its own, with the same
schedule, examples and seed and no fine-tuning, in a process of its own. Prints one table, best test error first.

Predicted and measured changes of the loss are sums over the steps, each on that step's examples. Memory is the
peak from the first step on, above what the process holds by then: network, data, and after a tiny run with the same
criterion all code. What cannot be run says why. Threads are torch's: set OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import statistics
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import memory
import torch
from safetensors.numpy import save_file
from timing import show

import prunekit as pk
from prunekit.observing.listener import Listener
from prunekit.plugins.host import default_manager
from prunekit.records import StepRecord

HIDDEN = [40, 20]
EPOCHS = {"mnist": 3, "digits": 20}
COLUMNS = ["criterion", "predicted", "measured", "test error", "s per step", "peak MiB"]


def dataset(root: Path | None) -> dict[str, Any]:
    """MNIST, or what needs no files."""
    return {"name": "digits"} if root is None else {"name": "mnist", "root": str(root.resolve())}


def spec(data: dict[str, Any], criterion: dict[str, Any], scheduler: dict[str, Any]) -> dict[str, Any]:
    """A run of the shared network without training."""
    return {
        "version": 1,
        "device": "cpu",
        "model": {"name": "mlp", "hidden": HIDDEN, "activation": "relu", "bias": False},
        "dataset": data,
        "prune": {"criterion": criterion, "scheduler": scheduler},
    }


def trained(data: dict[str, Any], folder: Path) -> tuple[Path, float]:
    """A checkpoint of the dense network, and its test error."""
    once = spec(data, {"name": "magnitude"}, {"name": "one_shot", "sparsity": 0.5})  # a run has to prune
    optimizer = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
    once["train"] = {"epochs": EPOCHS[data["name"]], "batch_size": 100, "optimizer": optimizer}
    checkpoint = folder / "dense.safetensors"
    with pk.run(once, folder / "dense.h5") as results:
        save_file(results.weights("dense"), checkpoint)
        return checkpoint, results.summary["dense"]["test_error"]


class Watch(Listener):
    """Keeps the steps, whose values a results file would hold only where they are finite, and marks the first."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []
        self.held = 0

    def phase(self, name: str, total: int, done: int) -> None:
        if name == "prune":
            self.held = memory.restart()

    def step(self, record: StepRecord) -> None:
        self.steps.append(record)


def tiny(run: dict[str, Any]) -> dict[str, Any]:
    """The same criterion where it takes next to nothing."""
    small = spec(dataset(None), run["prune"]["criterion"], {"name": "one_shot", "sparsity": 0.5})
    small["model"]["hidden"] = [4]
    small["prune"]["examples"] = 10
    return small


def measure(run: dict[str, Any]) -> dict[str, Any]:
    """What a run has found, in this process."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        with suppress(pk.PrunekitError):  # what it cannot do, the run itself will say
            pk.run(tiny(run), Path(folder) / "tiny.h5").close()
        try:
            pk.run(run, Path(folder) / "results.h5", listener=watch).close()
        except pk.UnsupportedError as error:
            return {"refused": short(str(error))}
    predicted = [s.predicted_delta_loss for s in watch.steps if s.predicted_delta_loss is not None]
    return {
        "predicted": sum(predicted) if predicted else None,
        "measured": sum(s.delta_loss for s in watch.steps),
        "error": watch.steps[-1].test_error,
        "seconds": statistics.median(s.seconds for s in watch.steps),
        "peak": max(memory.highest() - watch.held, 0),
    }


def short(message: str) -> str:
    """How much memory a refusal names first, which is what would be needed; else its first sentence."""
    size = re.search(r"[\d,.]+ GiB", message)
    return f"refused: {size[0] if size else message.partition('. ')[0]}"


def apart(run: dict[str, Any]) -> dict[str, Any]:
    """What a run has found, in a process of its own: a peak is a process's."""
    command = [sys.executable, str(Path(__file__).resolve()), "--measure"]
    done = subprocess.run(command, input=json.dumps(run), capture_output=True, text=True, check=False)
    if done.returncode:  # one failure should not take the others' rows away
        lines = done.stderr.strip().splitlines()
        return {"refused": f"failed: {lines[-1] if lines else f'exit status {done.returncode}'}"}
    return dict(json.loads(done.stdout))


def row(name: str, found: dict[str, Any]) -> list[object]:
    """A line of the table."""
    if "refused" in found:
        return [name, found["refused"], "", "", "", ""]
    predicted = found["predicted"]
    return [
        name,
        "-" if predicted is None else f"{predicted:+.4f}",
        f"{found['measured']:+.4f}",
        f"{100 * found['error']:.2f} %",
        f"{found['seconds']:.3f}",
        f"{found['peak'] / 2**20:.0f}",
    ]


def main() -> None:
    names = default_manager().names("criterion")
    parser = argparse.ArgumentParser(
        description=inspect.getdoc(inspect.getmodule(main)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder that holds MNIST's files, or MNIST/")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--examples", type=int, default=500, help="of each step's statistics")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument(
        "--measure", action="store_true", help=argparse.SUPPRESS
    )  # a spec from standard input
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(json.load(sys.stdin))))
        return
    data = dataset(given.data)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, dense = trained(data, Path(folder))
        scheduler = {"name": "exponential", "sparsity": given.sparsity, "steps": given.steps}
        for name in given.only:
            run = spec(data, {"name": name}, scheduler)
            run["model"]["checkpoint"] = str(checkpoint)
            run["prune"]["examples"] = given.examples
            found[name] = apart(run)
    order = sorted(found, key=lambda name: found[name].get("error", float("inf")))
    title = (
        f"{100 * given.sparsity:g} % of an MLP's weights, hidden layers {HIDDEN}, {data['name']}\n"
        f"dense test error {100 * dense:.2f} %; {given.steps} steps of {given.examples} examples\n"
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    show(title, COLUMNS, [row(name, found[name]) for name in order])


if __name__ == "__main__":
    main()
