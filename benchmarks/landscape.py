"""What probes of a step cost, beside the step itself.

    python benchmarks/landscape.py [--quick] [--only mlp vgg11 resnet oracle grids lanczos]

Of the networks, one table: for each a row for each probe, its time over that of the step (statistics, selection and
measurement), the median over the steps of a run with ``qm`` and random inputs, and the target. Whatever is found once for a
network is found in a first step that is not counted; so is what the run's own evaluations cost, which are not made here.
Another, of ``oracle``: what deleting a weight takes among many, and what it takes one by one, medians over rounds that take
turns. Two more, of lines and planes against bare passes, and of Lanczos' method against its products and, where they are
installed, PyHessian and hessian-eigenthings. Threads are torch's: set OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import landscape_curves
import networks
import torch
from networks import Case
from timing import interleaved, show

import prunekit as pk
from prunekit.observing.moment import Moment, StepMoment, Surroundings
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


def oracle(rounds: int) -> None:
    """Weights of the MLP's first layer, 784×300, on 1000 examples: many together, and a forward pass for each."""
    case = networks.mlp(1000)
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in case.weights.items()}
    moment = Moment("dense", Surroundings(case.model, as_loss("cross_entropy"), estimators), masks)
    name, weight = next(iter(case.weights.items()))
    flat, draw = weight.detach().view(-1), torch.Generator().manual_seed(0)
    chosen = torch.randperm(flat.numel(), generator=draw)[:4000]
    few = chosen[:20].tolist()

    def bare() -> None:
        for index in few:
            own, flat[index] = float(flat[index]), 0.0
            with torch.no_grad():
                torch.nn.functional.cross_entropy(case.model(case.x), case.y)
            flat[index] = own

    def by_loss() -> None:
        for index in few:
            weights = moment.weights()
            weights[name].view(-1)[index] = 0.0
            moment.loss(weights, case.batches)

    tasks: dict[str, tuple[Callable[[], object], int]] = {
        "together, moment.deletions": (
            lambda: moment.deletions({name: chosen}, data=case.batches),
            len(chosen),
        ),
        "a bare forward pass a weight": (bare, len(few)),
        "moment.loss a weight": (by_loss, len(few)),
    }
    seconds = interleaved({what: task for what, (task, _) in tasks.items()}, rounds)
    each = {what: [s / count for s in seconds[what]] for what, (_, count) in tasks.items()}
    first = next(iter(each))
    rows: list[list[object]] = []
    for what, times in each.items():
        ratio = statistics.median(a / b for a, b in zip(times, each[first], strict=True))
        time_each = f"{statistics.median(times) * 1e3:.3f} ms"
        rows.append([what, time_each, f"{ratio:.1f}", ">= 20" if what.startswith("a bare") else ""])
    show(
        f"Deleting a weight of a layer of 784×300, {torch.get_num_threads()} threads",
        ["what", "time a weight", "/ together", "target"],
        rows,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three steps, to see that it runs")
    parts = [*CASES, "oracle", "grids", "lanczos"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    given = parser.parse_args()
    rows: list[list[object]] = []
    if "oracle" in given.only:
        oracle(2 if given.quick else 7)
    if "grids" in given.only:
        landscape_curves.grids(2 if given.quick else 7)
    if "lanczos" in given.only:
        landscape_curves.lanczos((2,) if given.quick else (16, 64), 1 if given.quick else 2)
    for name in [name for name in given.only if name in CASES]:
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
    if not rows:
        return
    show(
        f"Probes of a step, {torch.get_num_threads()} threads",
        ["network", "what", "time", "/ step", "target"],
        rows,
    )


if __name__ == "__main__":
    main()
