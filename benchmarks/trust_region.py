"""Steps as long as the model can be trusted, against fixed schedules: `python benchmarks/trust_region.py --data DIR`.

Prunes the paper's dense 784-300-100-10 network to 98.847 % without retraining and prints the change of the loss on all
training data against passes, means over draws of the examples. A pass is one estimate of the statistics; a further attempt
counts with its time in estimates. DIR holds MNIST/ and mlp-mnist/1111.safetensors. `--only qm` picks criteria;
`--figure FILE.svg` draws what was found.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from one_shot import Samples, loss_and_accuracy, papers
from timing import show

import prunekit as pk
from prunekit.pruning import sample
from prunekit_plugins.datasets.mnist import MNIST

SPARSITY = 0.98847


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        criterion: As in a spec, its λ too.
        examples: Of each step.
        steps: Of the exponential schedule, each a point.
        options: Of the trust region, the tolerance left out.
        relative: Of its tolerance.
        absolute: Of its tolerances, each a point.
        targets: What was hoped for, in words.
    """

    criterion: Mapping[str, object]
    examples: int
    steps: tuple[int, ...]
    options: Mapping[str, object]
    relative: float
    absolute: tuple[float, ...]
    targets: str


COMPARISONS = (
    Comparison(
        {"name": "qm", "lambda": 1e-3},
        1000,
        (14, 28, 56, 140),
        {},
        0.0,
        (0.16, 0.18, 0.012, 0.008, 0.05),
        "≤ 1.36 in 14 passes, and what 140 steps reach in 90",
    ),
    Comparison({"name": "obs_rows"}, 2000, (14,), {}, 0.5, (0.045,), "≤ 0.40 in 14 passes"),
    Comparison(
        {"name": "combinatorial"},
        2000,
        (40,),
        {"adapt": "both"},
        1.0,
        (0.02,),
        "≤ 0.12 at the cost of 40 steps, no damping given, never running away",
    ),
)


@dataclass(frozen=True)
class Found:
    """One run: the change of the training loss, passes, steps, attempts taken back, seconds."""

    loss: float
    passes: float
    steps: int
    back: int
    seconds: float


@contextmanager
def timed_estimates() -> Iterator[list[float]]:
    """The seconds of every estimate of statistics inside."""
    seconds: list[float] = []
    original = sample.estimate

    def timed(*arguments: object, **options: object) -> object:
        begun = time.perf_counter()
        result = original(*arguments, **options)  # type: ignore[arg-type]  # whatever it takes
        seconds.append(time.perf_counter() - begun)
        return result

    sample.estimate = timed  # type: ignore[assignment]
    try:
        yield seconds
    finally:
        sample.estimate = original


def pruned(
    criterion: Mapping[str, object],
    examples: int,
    scheduler: Mapping[str, object],
    train: pk.Split,
    root: Path,
    draw: int,
) -> Found:
    """Prune the network once; a run that stops short counts as none."""
    model = papers(root)
    before, _ = loss_and_accuracy(model, train)
    begun = time.perf_counter()
    with timed_estimates() as estimates:
        done = pk.prune(
            model, Samples(train, examples, draw), criterion, SPARSITY, scheduler=scheduler, memory=4 << 30
        )
    seconds = time.perf_counter() - begun
    further = [
        a.seconds for last, a in zip(done.attempts, done.attempts[1:], strict=False) if not last.accepted
    ]
    after, _ = loss_and_accuracy(model, train)
    passes = len(done.steps) + sum(further) / mean(estimates)
    return Found(after - before, passes, len(done.steps), len(further), seconds)


def rows(
    comparison: Comparison, train: pk.Split, root: Path, draws: int
) -> Iterator[tuple[str, str, list[Found]]]:
    """Every schedule and its runs."""
    for steps in comparison.steps:
        scheduler = {"name": "exponential", "steps": steps}
        yield (
            "exponential",
            f"{steps} steps",
            [
                pruned(comparison.criterion, comparison.examples, scheduler, train, root, draw)
                for draw in range(draws)
            ],
        )
    for absolute in comparison.absolute:
        tolerance = {"relative": comparison.relative, "absolute": absolute}
        scheduler = {"name": "trust_region", "passes": 1000, "tolerance": tolerance, **comparison.options}
        yield (
            "trust region",
            f"tolerance {absolute:g}"
            + (f" + {comparison.relative:g}·|predicted|" if comparison.relative else ""),
            [
                pruned(comparison.criterion, comparison.examples, scheduler, train, root, draw)
                for draw in range(draws)
            ],
        )


def draw(found: Mapping[str, list[tuple[str, list[Found]]]], path: Path) -> None:
    """The change of the loss against passes, a line for each schedule of each criterion."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    looks = {"exponential": ("o", "--"), "trust region": ("s", "-")}
    for colour, (criterion, points) in zip(
        ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), found.items(), strict=False
    ):
        for kind, (marker, line) in looks.items():
            runs = sorted(
                (mean(r.passes for r in here), mean(r.loss for r in here))
                for name, here in points
                if name == kind
            )
            xs, ys = zip(*runs, strict=True)
            axes.plot(xs, ys, line, marker=marker, color=colour, label=f"{criterion}, {kind}")
    axes.set(
        xscale="log",
        xlabel="passes (estimates of the statistics)",
        ylabel="change of the training loss (nats)",
    )
    axes.set_xticks([10, 20, 50, 100, 200], ["10", "20", "50", "100", "200"])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds MNIST/ and mlp-mnist/")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=None, help="names of criteria")
    parser.add_argument("--figure", type=Path, default=None)
    arguments = parser.parse_args()
    train = MNIST(root=arguments.data).load(1111).train
    found: dict[str, list[tuple[str, list[Found]]]] = {}
    for comparison in COMPARISONS:
        criterion = comparison.criterion
        if arguments.only is not None and criterion["name"] not in arguments.only:
            continue
        title = f"{criterion['name']}, λ = {criterion.get('lambda', 0)}"
        table: list[list[object]] = []
        for kind, what, runs in rows(comparison, train, arguments.data, arguments.draws):
            found.setdefault(title, []).append((kind, runs))
            losses = [run.loss for run in runs]
            print(title, kind, what, f"{mean(losses):.3f}", file=sys.stderr, flush=True)
            error = stdev(losses) / len(losses) ** 0.5 if len(losses) > 1 else float("nan")
            table.append(
                [
                    kind,
                    what,
                    f"{mean(losses):.3f} ± {error:.3f}",
                    f"{max(losses):.3f}",
                    f"{mean(run.passes for run in runs):.1f}",
                    f"{mean(run.steps for run in runs):.1f}",
                    f"{mean(run.back for run in runs):.1f}",
                    f"{mean(run.seconds for run in runs):.1f} s",
                ]
            )
        columns = ["schedule", "", "change of the loss", "worst", "passes", "steps", "taken back", "time"]
        show(f"{title}, {comparison.examples} examples: {comparison.targets}", columns, table)
    if arguments.figure is not None:
        draw(found, arguments.figure)


if __name__ == "__main__":
    main()
