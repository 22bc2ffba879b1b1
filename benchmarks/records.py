"""What is left of published networks after pruning without retraining, beside plain training of the same survivors.

    python benchmarks/records.py --data DIR                          # mlpnet: all rows, sparsities and five draws
    python benchmarks/records.py --data DIR --rows combinatorial adam_ours --sparsity 0.9 --draws 1

DIR holds chita/ and MNIST/, for resnet20 also cifar-10-batches-bin/. The specs are examples/records/NETWORK.yaml; a row
changes some of their settings (record_rows.py). A draw is a seed of the examples that statistics are estimated on; the dense
network is the published one. Each row is a process of its own. What is done is kept in --out, a JSON line each, and a rerun
goes on where it stopped; --print only prints the table.

Accuracy and the change of the held-out loss are on the test images; the change of the training loss on all training images
of the spec's split. Its validation images are never trained on, and choose what has to be chosen: the controls' learning
rates, on the first draw. Seconds are those of the processor, all threads together, for pruning or training alone. Passes are
examples that were drawn for statistics, or trained on, in units of the training split; a product with a curvature matrix
reads its examples again and does not count. Memory is the peak from the first step on, above network and data.

Controls: `no_pruning` has the updates of `combinatorial` at sparsity zero; `sgd_…` and `adam_…` train the survivors of
`magnitude` or `combinatorial` (`…_ours`), from the dense weights, on the examples that `combinatorial` drew, for as many
seconds.
BatchNorm's statistics are recomputed in every row on as many training examples as the spec says.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import memory
import numpy as np
import torch
from record_controls import RATES, trained
from record_rows import NETWORKS, OURS, ROWS, SPECS, Network
from record_tables import show

import prunekit as pk
from prunekit.network.measure import metrics
from prunekit.observing.listener import Listener
from prunekit.plugins.host import default_manager
from prunekit.records import StepRecord
from prunekit.runs import run as runs
from prunekit.runs.plan import bind
from prunekit.spec import load
from prunekit.training.normalisation import recalibrate

Found = dict[str, Any]


class Watch(Listener):
    """Seconds of the processor and memory from the first step on, without what measures the network as a whole."""

    def __init__(self) -> None:
        self.held, self.peak, self.seconds, self._begun, self._measuring = 0, 0, 0.0, 0.0, 0.0

    def phase(self, name: str, total: int | None, done: int) -> None:
        if name == "prune":
            self.held, self._measuring, self._begun = memory.restart(), 0.0, time.process_time()

    def step(self, record: StepRecord) -> None:
        self.seconds = time.process_time() - self._begun - self._measuring
        self.peak = max(memory.highest() - self.held, 0)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Count what the run's own measurements take."""
        original = runs.metrics

        def counted(*arguments: Any, **options: Any) -> Any:
            begun = time.process_time()
            try:
                return original(*arguments, **options)
            finally:
                self._measuring += time.process_time() - begun

        runs.metrics = counted  # type: ignore[assignment]
        try:
            yield
        finally:
            runs.metrics = original


class Records:
    """The rows of one network.

    Args:
        name: Of the network, and of its files.
        network: What it is.
        data: The folder with its files; ``None``: the spec says where they are.
        out: Where what is done is kept.
    """

    def __init__(self, name: str, network: Network, data: Path | None, out: Path) -> None:
        self.name, self.network, self.out = name, network, out
        self._where = network.settings(data)
        (out / "runs").mkdir(parents=True, exist_ok=True)

    def kept(self, row: str) -> list[Found]:
        """What is done of a row."""
        path = self._lines(row)
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def complete(self, row: str, sparsity: float, draw: int) -> Found:
        """A row's figures, from what is kept or measured now."""
        for found in self.kept(row):
            if (found["sparsity"], found["draw"]) == (sparsity, draw):
                return found
        measured = self._control if ROWS[row].optimizer else self._pruned
        found = {"row": row, "sparsity": sparsity, "draw": draw, **measured(row, sparsity, draw)}
        with self._lines(row).open("a") as file:
            file.write(json.dumps(found) + "\n")
        return found

    def _lines(self, row: str) -> Path:
        return self.out / f"{self.name}-{row}.jsonl"

    def _file(self, row: str, sparsity: float, draw: int) -> Path:
        return self.out / "runs" / f"{self.name}-{row}-{sparsity:g}-{draw}.h5"

    def overrides(self, row: str, sparsity: float, draw: int) -> dict[str, object]:
        """What a row's run has other than its spec says."""
        given, plan = ROWS[row], load(self.network.spec).data
        scheduler = dict(plan["prune"]["scheduler"])
        changes = dict(given.changes)
        scheduler = {"name": "one_shot"} if given.one_shot else changes.pop("prune.scheduler", scheduler)
        scheduler = {**scheduler, "sparsity": 0.0 if given.nothing else sparsity}
        return {**self._where, "seeds.sample": draw, **changes, "prune.scheduler": scheduler}

    def _pruned(self, row: str, sparsity: float, draw: int) -> Found:
        """A run of the spec."""
        watch, path = Watch(), self._file(row, sparsity, draw)
        with watch.aside():
            results = pk.run(
                self.network.spec, path, self.overrides(row, sparsity, draw), overwrite=True, listener=watch
            )
        with results:
            summary = results.summary
            drawn = sum(len(results.examples(step["step"])) for step in summary["steps"])
        # What is measured on fresh examples was drawn too, at every attempt.
        fresh = [a for a in summary["attempts"] or [] if "fresh" in (a.get("measured") or {})]
        drawn += len({a["step"] for a in fresh}) * int(summary["spec"]["prune"]["examples"] or 0)
        return {
            **_figures(summary["dense"], summary["pruned"]),
            "seconds": watch.seconds,
            "passes": 0.0 if ROWS[row].one_shot else drawn / self._size,
            "mib": watch.peak / 2**20,
            "steps": len(summary["steps"]),
            "sparsity_reached": summary["steps"][-1]["sparsity"],
        }

    def _control(self, row: str, sparsity: float, draw: int) -> Found:
        """Training of another row's survivors; on the first draw with every rate, the best of which is for all."""
        given = ROWS[row]
        ours = self.complete(OURS, sparsity, draw)
        self.complete(given.masks, sparsity, draw)
        if draw:
            rates = (float(self.complete(row, sparsity, 0)["rate"]),)
        else:
            rates = RATES[given.optimizer]
        tried = {rate: self._trained(row, sparsity, draw, rate, ours["seconds"]) for rate in rates}
        best = max(tried, key=lambda rate: tried[rate]["valid"])
        return {**tried[best], "rate": best, "tried": {str(r): found["valid"] for r, found in tried.items()}}

    def _trained(self, row: str, sparsity: float, draw: int, rate: float, seconds: float) -> Found:
        given, plan = ROWS[row], self._plan
        with pk.open(self._file(given.masks, sparsity, draw)) as results:
            last = len(results.summary["steps"])
            masks = {name: torch.from_numpy(mask) for name, mask in results.masks(last).items()}
        with pk.open(self._file(OURS, sparsity, draw)) as results:
            steps = range(1, len(results.summary["steps"]) + 1)
            drawn = np.unique(np.concatenate([results.examples(step) for step in steps]))
            dense = {name: torch.from_numpy(np.array(w)) for name, w in results.weights("dense").items()}
            before = results.summary["dense"]
        plan.model.load_state_dict(dense)
        examples = plan.splits.train.take(torch.from_numpy(drawn))
        held = memory.restart()
        passes = trained(plan.model, masks, examples, given.optimizer, rate, seconds, draw)
        peak = max(memory.highest() - held, 0)
        count = plan.bound["prune"]["recalibrate_batchnorm"]
        if count is not None:
            some = torch.randperm(len(examples), generator=torch.Generator().manual_seed(draw))[:count]
            recalibrate(plan.model, examples.take(some))
        kept = {n: p for n, p in plan.model.named_parameters() if n in masks}
        assert all(not bool(kept[name][~mask].any()) for name, mask in masks.items())
        after = metrics(plan.model, plan.splits, plan.loss, plan.bound["evaluate"]["train_examples"], {})
        return {
            **_figures(before, after),
            "seconds": seconds,
            "passes": passes * len(examples) / self._size,
            "mib": peak / 2**20,
            "steps": 0,
            "sparsity_reached": 1
            - sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values()),
        }

    @cached_property
    def _plan(self) -> Any:
        """Data and network."""
        return bind(load(self.network.spec, self._where), default_manager())

    @property
    def _size(self) -> int:
        return len(self._plan.splits.train)


def _figures(before: Mapping[str, float], after: Mapping[str, float]) -> Found:
    return {
        "accuracy": 100 - 100 * after["test_error"],
        "valid": 100 - 100 * after["valid_error"],
        "train": after["train_loss"] - before["train_loss"],
        "heldout": after["test_loss"] - before["test_loss"],
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=inspect.getdoc(inspect.getmodule(_arguments)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, help="folder that holds chita/, MNIST/ and cifar-10-batches-bin/"
    )
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=["mlpnet"])
    parser.add_argument("--spec", type=Path, help="of a network of your own, in place of --network")
    parser.add_argument("--sparsity", nargs="+", type=float, help="default: those that were published")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("records"), help="what is done is kept here")
    parser.add_argument("--print", action="store_true", help="only print what is kept")
    parser.add_argument("--one", choices=ROWS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = _arguments()
    sys.path.insert(0, str(SPECS))  # where a spec's own network is
    networks = (
        {given.spec.stem: Network(given.spec)} if given.spec else {n: NETWORKS[n] for n in given.network}
    )
    for name, network in networks.items():
        records = Records(name, network, given.data, given.out)
        sparsities = given.sparsity or list(network.sparsities)
        if given.one:
            done = _row(records, given.one, sparsities, given.draws)
            raise SystemExit(0 if done else 1)
        if not given.print:
            for row in given.rows:
                _apart(name, given, row, sparsities)
        kept = {row: records.kept(row) for row in given.rows}
        show(name, network, kept, sparsities, given.draws)


def _row(records: Records, row: str, sparsities: list[float], draws: int) -> bool:
    """Complete a row; whether all of it could be. What fails, such as a trust region that stops short, is not kept."""
    whole = True
    for sparsity in sparsities:
        for draw in range(draws):
            try:
                found = records.complete(row, sparsity, draw)
                text = f"{found['accuracy']:.2f} %, {found['seconds']:.1f} s"
            except pk.PrunekitError as error:
                text, whole = f"failed: {error}", False
            where = f"{records.name} {row} at {sparsity:g}, draw {draw}"
            print(f"{where}: {text}", file=sys.stderr, flush=True)
    return whole


def _apart(name: str, given: argparse.Namespace, row: str, sparsities: list[float]) -> None:
    """A row in a process of its own; one that fails says why, and the others go on."""
    command = [sys.executable, str(Path(__file__).resolve()), "--one", row, "--out", str(given.out)]
    command += ["--spec", str(given.spec)] if given.spec else ["--network", name]
    command += ["--data", str(given.data)] if given.data else []
    command += ["--draws", str(given.draws), "--sparsity", *map(str, sparsities)]
    done = subprocess.run(command, check=False, env=os.environ)
    if done.returncode:
        print(f"{name} {row}: ended with status {done.returncode}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
