"""How far choices are from the best ones: `python benchmarks/certificate.py --data DIR [--only steps runs monks]`.

`steps`: one step of the paper's dense 784-300-100-10 network from 500 examples, by exchange and by the dual, against the
bound, with what it does to the loss of the test set. `runs`: whole runs with either search, in 14 and 40 steps and with the
trust region choosing the damping. `monks`: greedy OBS on the MONK's problems against the best choice, at every number of
weights. Seconds are processor time of the choice alone. DIR holds MNIST/, mlp-mnist/1111.safetensors and the UCI files.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import torch
from obs import LOSS, PROBLEMS, trained
from one_shot import Samples, loss_and_accuracy, papers

import prunekit as pk
from prunekit_plugins.criteria.combinatorial import Combinatorial
from prunekit_plugins.datasets.mnist import MNIST
from prunekit_plugins.datasets.monks import Monks

SPARSITIES, DAMPINGS = (0.5, 0.9, 0.95, 0.98847), (0.1, 0.01, 0.001)
EXAMPLES = 500
MONKS = ((3e-3, 12), (1e-4, 15), (2e-2, 4))  # weight decay, and how far OBS goes without more errors
MONKS_DAMPING = 1e-3


def show(title: str, columns: list[str], rows: list[list[object]]) -> None:
    """Print a table as the pages have it."""
    print(f"\n{title}\n")
    for row in (columns, ["---"] * len(columns), *rows):
        print("| " + " | ".join(map(str, row)) + " |")


class Timed(Combinatorial):
    """The criterion, and what its choices cost, those at another damping included."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.spent: list[float] = []

    def propose(self, context: pk.Context) -> pk.Proposal:
        begun = time.process_time()
        proposal = super().propose(context)
        self.spent.append(time.process_time() - begun)
        return proposal


def one_step(root: Path, splits: pk.Splits, search: str, sparsity: float, damping: float) -> dict[str, Any]:
    """A step from the dense network: its certificate, its time, and what it does to losses."""
    model, criterion = papers(root), Timed(search=search, damping=damping)
    before = loss_and_accuracy(model, splits.test)[0]
    samples = Samples(splits.train, EXAMPLES, 0)()
    done = pk.prune(model, samples, criterion, sparsity, 1, probes=["certificate"], memory=4 << 30)
    (row,) = done.probes["certificate"]["steps"]
    after = loss_and_accuracy(model, splits.test)[0]
    return {
        **row,
        "seconds": sum(criterion.spent),
        "here": done.steps[0].delta_loss,
        "held out": after - before,
    }


def steps(root: Path) -> None:
    splits, rows = MNIST(root=root).load(0), []
    for sparsity in SPARSITIES:
        for damping in DAMPINGS:
            found = {s: one_step(root, splits, s, sparsity, damping) for s in ("exchange", "dual")}
            bound = max(row["bound"] for row in found.values())
            print(sparsity, damping, bound, file=sys.stderr, flush=True)
            rows.append(
                [
                    f"{100 * sparsity:g} %",
                    f"{damping:g}",
                    f"{bound:.6f}",
                    " / ".join(f"{row['value']:.6f}" for row in found.values()),
                    " → ".join(against(row["value"], bound) for row in found.values()),
                    " / ".join(f"{row['seconds']:.1f}" for row in found.values()),
                    " / ".join(f"{row['here']:.3f}" for row in found.values()),
                    " / ".join(f"{row['held out']:.3f}" for row in found.values()),
                ]
            )
    columns = ["sparsity", "α", "bound", "value", "gap", "s", "change of the loss", "of the test loss"]
    show(f"One step, {EXAMPLES} examples; exchange / dual", columns, rows)


def against(value: float, bound: float) -> str:
    """The gap as a fraction where that makes sense."""
    relative = pk.Certificate(value, value, bound, 0, 0.0, None).relative_gap
    return f"{1000 * (value - bound):.1f} mnats" if relative is None else f"{100 * relative:.2g} %"


def one_run(
    root: Path, splits: pk.Splits, search: str, scheduler: Mapping[str, object], damping: float, examples: int
) -> list[object]:
    """A run down to 98.847 %: the worst relative gap, what the losses change by, steps, and the time of the choices."""
    model, criterion = papers(root), Timed(search=search, damping=damping)
    train, test = (loss_and_accuracy(model, split)[0] for split in (splits.train, splits.test))
    samples = Samples(splits.train, examples, 0)
    try:
        done = pk.prune(
            model, samples, criterion, 0.98847, scheduler=scheduler, probes=["certificate"], memory=4 << 30
        )
    except pk.RunError as error:
        return [str(error)[:60], "", "", "", "", f"{sum(criterion.spent):.0f}"]
    gaps = [row["relative_gap"] for row in done.probes["certificate"]["steps"]]
    known = [gap for gap in gaps if gap is not None]
    after = [loss_and_accuracy(model, split)[0] for split in (splits.train, splits.test)]
    return [
        f"{100 * max(known):.2g} %" if known else "–",
        f"{after[0] - train:.3f}",
        f"{after[1] - test:.3f}",
        len(done.steps),
        len(done.attempts) - len(done.steps),
        f"{sum(criterion.spent):.0f}",
    ]


def runs(root: Path, examples: int, counts: list[int], dampings: list[float], trusted: bool) -> None:
    splits, rows = MNIST(root=root).load(0), []
    region = {
        "name": "trust_region",
        "passes": 1000,
        "adapt": "both",
        "tolerance": {"relative": 1.0, "absolute": 0.02},
    }
    given = [
        (f"{n} steps, α = {a:g}", {"name": "exponential", "steps": n}, a) for n in counts for a in dampings
    ]
    given += [("trust region", region, 0.1)] if trusted else []
    for what, scheduler, damping in given:
        for search in ("exchange", "dual"):
            rows.append([what, search, *one_run(root, splits, search, scheduler, damping, examples)])
            print(*rows[-1], file=sys.stderr, flush=True)
    columns = ["", "search", "widest gap", "training loss", "test loss", "steps", "taken back", "s"]
    show(f"Runs to 98.847 %, {examples} examples a step", columns, rows)


def monks(root: Path, nodes: int) -> None:
    for problem, (decay, far) in zip(PROBLEMS, MONKS, strict=True):
        split = Monks(root=root, problem=problem.number).load(0).train
        batch = split.x.double(), split.y.double()
        dense = trained(*batch, problem.hidden, decay, 0)
        total, rows, excesses, ended = sum(p.numel() for p in dense.parameters()), [], [], 0
        probe = {"name": "certificate", "exact": True, "nodes": nodes}
        for kept in range(total - 1, 0, -1):
            model = deepcopy(dense)
            pruning = pk.prune(
                model,
                [batch],
                {"name": "obs", "damping": MONKS_DAMPING},
                scheduler={"name": "explicit", "levels": [1 - kept / total]},
                loss=LOSS,
                prunable={"biases": True},
                probes=[probe],
            )
            (row,) = pruning.probes["certificate"]["steps"]
            optimum, lowest = row["optimum"], max(row["bound"], row["exact_bound"])
            proved = row["nodes"] < nodes
            excesses.append(row["value"] / optimum - 1)
            ended += proved
            print(problem.number, kept, proved, row["nodes"], excesses[-1], file=sys.stderr, flush=True)
            if kept % 10 == 0 or kept in (5, 3, far):
                rows.append(
                    [
                        kept,
                        f"{row['value']:.3g}",
                        f"{optimum:.3g}" if proved else f"{lowest:.3g} to {optimum:.3g}",
                        f"{100 * excesses[-1]:.2g} %",
                        against(optimum, row["bound"]),
                        row["nodes"],
                    ]
                )
        title = (
            f"MONK's {problem.number}, {total} weights, α = {MONKS_DAMPING:g}: proved at {ended} of "
            f"{len(excesses)} numbers of weights; OBS is up to {100 * max(excesses):.2g} % above the best one, "
            f"{100 * median(excesses):.2g} % in the median"
        )
        show(title, ["kept", "greedy OBS", "best", "OBS above it", "bound below it", "nodes"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data of all parts")
    parser.add_argument("--only", nargs="+", default=["steps", "runs", "monks"])
    parser.add_argument("--examples", type=int, default=1000, help="of each step of a run")
    parser.add_argument("--steps", type=int, nargs="*", default=[14, 40], help="of runs")
    parser.add_argument("--dampings", type=float, nargs="+", default=[0.1, 0.03], help="of runs")
    parser.add_argument("--no-trust-region", action="store_true")
    parser.add_argument("--nodes", type=int, default=10_000, help="of branch and bound")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if "steps" in arguments.only:
        steps(arguments.data)
    if "runs" in arguments.only:
        runs(
            arguments.data,
            arguments.examples,
            arguments.steps,
            arguments.dampings,
            not arguments.no_trust_region,
        )
    if "monks" in arguments.only:
        monks(arguments.data, arguments.nodes)


if __name__ == "__main__":
    main()
