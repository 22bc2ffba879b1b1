"""What probes of a step cost, beside the step itself.

    python benchmarks/landscape.py [--quick] [--only mlp vgg11 resnet]

One table: for each network a row for each probe, its time over that of the step (statistics, selection and measurement),
the median over the steps of a run with ``qm`` and random inputs, and the target. Whatever is found once for a network is
found in a first step that is not counted; so is what the run's own evaluations cost, which are not made here. Threads are
torch's: set OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import networks
import torch
from networks import Case
from timing import show

import prunekit as pk
from prunekit.observing.moment import StepMoment, Surroundings
from prunekit.plugins.build import as_loss, component, estimators
from prunekit.pruning.sample import Sample
from prunekit.pruning.step import Pruner

CASES: dict[str, Callable[[], Case]] = {
    "mlp": lambda: networks.mlp(),
    "vgg11": lambda: networks.vgg11(16),
    "resnet": lambda: networks.preact_resnet18(8),
}
PROBES: dict[str, tuple[Mapping[str, object], float | None]] = {
    "error_budget": ({"name": "error_budget"}, 0.5),
    "error_budget, layer matrix": ({"name": "error_budget", "layers": True}, None),
    "radius": ({"name": "radius"}, 1.0),
}
PRODUCTS = "products with G and H along Δθ"


def products(moment: StepMoment) -> None:
    """What the forms along Δθ would cost by matrix-free products."""
    change, before = moment.change(), moment.before()
    for kind in ("ggn", "hessian"):
        moment.product(kind, change, before)  # type: ignore[arg-type]


def measured(case: Case, steps: int) -> dict[str, list[float]]:
    """Seconds of every step but the first, and of each probe at it."""
    around = Surroundings(case.model, as_loss("cross_entropy"), estimators)
    pruner = Pruner(
        around,
        component("criterion", "qm"),
        component("scheduler", {"name": "exponential", "sparsity": 0.95, "steps": steps + 1}),
        component("selector", "global"),
    )
    probes: dict[str, pk.Probe] = {
        name: component("probe", dict(given)) for name, (given, _) in PROBES.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("step", *PROBES, PRODUCTS)}
    draw = torch.Generator().manual_seed(0)
    for outcome in pruner.outcomes(lambda index: Sample(case.batches, torch.Generator().manual_seed(index))):
        moment = outcome.moment
        assert moment is not None
        tasks: dict[str, Callable[[], object]] = {
            name: lambda probe=probe, moment=moment: probe.measure(moment, draw)  # type: ignore[misc]
            for name, probe in probes.items()
        }
        tasks[PRODUCTS] = lambda moment=moment: products(moment)  # type: ignore[misc]
        seconds["step"].append(outcome.attempt.seconds)
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three steps, to see that it runs")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    given = parser.parse_args()
    rows: list[list[object]] = []
    for name in given.only:
        seconds = measured(CASES[name](), 3 if given.quick else 14)
        rows.append([name, "qm step", f"{statistics.median(seconds['step']) * 1e3:.1f} ms", "", ""])
        for what in (*PROBES, PRODUCTS):
            ratios = [a / b for a, b in zip(seconds[what], seconds["step"], strict=True)]
            target = PROBES[what][1] if what in PROBES else None
            rows.append(
                [
                    "",
                    what,
                    f"{statistics.median(seconds[what]) * 1e3:.1f} ms",
                    f"{statistics.median(ratios):.2f}",
                    "" if target is None else f"<= {target:g}",
                ]
            )
    show(
        f"Probes of a step, {torch.get_num_threads()} threads",
        ["network", "what", "time", "/ step", "target"],
        rows,
    )


if __name__ == "__main__":
    main()
