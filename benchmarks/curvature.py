"""Curvature and selection, against a plain gradient and against peers.

    python benchmarks/curvature.py [--quick] [--only diagonals operators selection memory growth]

Prints one table per subject. Times of a table were taken in turn, A B C A B C …, and every ratio is the
median over the rounds of two times of the same round. Before anything is timed its values are compared:
methods that should agree do, to 1e-3 relative in float32, or the script stops. The empirical Fisher is
compared with single examples' gradients, what is drawn with the exact trace, and products with curvlinops,
which has products but no exact diagonal.

Peers are optional; rows of one that is missing say "not installed". BackPACK and curvlinops declare
torchvision, of which there is no CPU build, and need nothing of it:

    pip install --no-deps backpack-for-pytorch einops unfoldNd einconv \
        curvlinops-for-pytorch linear_operator jaxtyping
    pip install packaging tqdm opt-einsum scipy

Every method covers the weights of Linear and Conv layers and no biases, BackPACK and curvlinops too; the
gradient and the paper's method run the ordinary backward pass, through all parameters. Threads are torch's:
set OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

import growth
import memory
import networks
import peers
import torch
from networks import Case
from peers import Task, Values, distance
from timing import interleaved, median, ratio, show

import prunekit as pk
from prunekit.masks import prune_smallest
from prunekit.plugins.host import default_manager

AGREES = 1e-3
DRAWS, DRAWN_AGREES = 16, 0.5
BASE, OWN = "bare gradient", "ggn_diagonal"
ABSENT = "not installed"
COSTS = ["", "time", "/ gradient", "target", "prunekit is faster by", "target"]


@dataclass(frozen=True)
class Targets:
    """What a network's figures should be: at most these ratios, at least these speed-ups.

    Attributes:
        exact: GGN diagonal over gradient.
        sampled: Monte-Carlo GGN and empirical Fisher over gradient.
        backpack: BackPACK's exact diagonal over prunekit's; ``None`` where it cannot compute it.
        paper: The paper's method over prunekit's.
    """

    exact: float
    sampled: float
    backpack: float | None
    paper: float


NETWORKS: dict[str, tuple[str, Callable[[], Case], Targets]] = {
    "mlp": ("MLP 784-300-100-10 tanh, 1000 examples", networks.mlp, Targets(2.0, 1.6, 3, 5)),
    "vgg11": ("VGG11, 16 images of 32 × 32", networks.vgg11, Targets(6.5, 2.2, 7, 6)),
    "preact_resnet18": (
        "PreActResNet18, 8 images of 32 × 32",
        networks.preact_resnet18,
        Targets(6, 2.2, None, 3.5),
    ),
}


def diagonals(rounds: int, chosen: list[str]) -> None:
    """Diagonals against one gradient of the same batch, network by network."""
    for name in chosen:
        title, build, targets = NETWORKS[name]
        _diagonals(title, build(), targets, rounds)


def _diagonals(title: str, case: Case, targets: Targets, rounds: int) -> None:
    requests = {
        "gradient": pk.Statistic("gradient"),
        OWN: pk.Statistic(OWN),
        "ggn_mc_diagonal": pk.Statistic("ggn_mc_diagonal", draws=1),
        "empirical_fisher_diagonal": pk.Statistic("empirical_fisher_diagonal"),
    }
    known = default_manager().names("statistic")
    own = {name: _statistic(case, r) for name, r in requests.items() if name in known}
    others, absent = _other_diagonals(case, targets)
    checked = _check_diagonals(case, own, others)

    seconds = interleaved({BASE: case.gradient, **own, **others}, rounds)
    limits = {
        "gradient": 1.1,
        OWN: targets.exact,
        "ggn_mc_diagonal": targets.sampled,
        "empirical_fisher_diagonal": targets.sampled,
    }
    rows = [_cost(seconds, BASE, BASE)]
    for name in requests:
        label = f"prunekit {name}"
        rows.append(
            _cost(seconds, name, label, _at_most(limits[name])) if name in own else _empty(label, "not known")
        )
    against = {
        "BackPACK DiagGGNExact": (OWN, targets.backpack),
        "the paper's method": (OWN, targets.paper),
        "BackPACK DiagGGNMC": ("ggn_mc_diagonal", None),
        "BackPACK SumGradSquared": ("empirical_fisher_diagonal", None),
    }
    for name in others:
        rival, least = against[name]
        gain = ratio(seconds, name, rival) if rival in seconds else None
        rows.append(_cost(seconds, name, name, gain=gain, least=least))
    rows += [_empty(name, why) for name, why in absent.items()]
    show(f"Diagonals: {title}\n{checked}", COSTS, rows)


def _statistic(case: Case, request: pk.Statistic) -> Task:
    seeds = count()  # a new draw each time, as in a step-wise pruning
    return lambda: pk.statistics(case.model, case.batches, [request], seed=next(seeds))[request]


def _other_diagonals(case: Case, targets: Targets) -> tuple[dict[str, Task], dict[str, str]]:
    """The peers' diagonals, and why there are not more."""
    found, absent = {"the paper's method": peers.papers_method(case)}, {}
    for extension in ("DiagGGNExact", "DiagGGNMC", "SumGradSquared"):
        label = f"BackPACK {extension}"
        if not peers.installed("backpack"):
            absent[label] = ABSENT
        elif targets.backpack is None:
            absent[label] = "cannot"
        else:
            found[label] = peers.backpack(case, extension)
    return found, absent


def _check_diagonals(case: Case, own: Mapping[str, Task], others: Mapping[str, Task]) -> str:
    """Compare what is exact to rounding, and what is drawn by its trace; say how they differ."""
    tasks = {**{f"prunekit {name}": task for name, task in own.items()}, **others}
    exact, fisher = own[OWN](), peers.one_by_one(case)
    same = {
        "the paper's method": exact,
        "BackPACK DiagGGNExact": exact,
        "prunekit empirical_fisher_diagonal": fisher,
        "BackPACK SumGradSquared": fisher,
    }
    said = [_agreement(name, tasks[name](), expected) for name, expected in same.items() if name in tasks]
    drawn = [name for name in ("prunekit ggn_mc_diagonal", "BackPACK DiagGGNMC") if name in tasks]
    said += [_trace_agreement(name, tasks[name], exact) for name in drawn]
    return "checked first, relative differences: " + "; ".join(said)


def _agreement(name: str, found: Values, expected: Values) -> str:
    off = distance(found, expected)
    if not off <= AGREES:
        raise SystemExit(f"{name} is wrong or differs from prunekit: relative difference {off:.1e}")
    return f"{name} {off:.0e}"


def _trace_agreement(name: str, task: Task, expected: Values) -> str:
    """One draw agrees only on average over draws and weights, so traces of several are averaged."""
    off = abs(sum(_trace(task()) for _ in range(DRAWS)) / DRAWS / _trace(expected) - 1)
    if not off <= DRAWN_AGREES:
        raise SystemExit(f"the trace of {name} is {off:.0%} off the exact one")
    return f"trace of {DRAWS} {name} {off:.0%}"


def _trace(diagonal: Values) -> float:
    return sum(float(t.sum()) for t in diagonal.values())


def operators(rounds: int, chosen: list[str]) -> None:
    """Products with the GGN and the Hessian; operators are made beforehand, only products are timed."""
    for name in chosen:
        title, build, _ = NETWORKS[name]
        case = build()
        for kind in ("ggn", "hessian"):
            _products(f"{kind} products: {title}", case, kind, rounds)


def _products(title: str, case: Case, kind: str, rounds: int) -> None:
    torch.manual_seed(1)
    vector = {name: torch.randn_like(p) for name, p in case.weights.items()}
    tasks: dict[str, Task] = {}
    absent: dict[str, str] = {}
    own, peer = f"prunekit operator, {kind}", f"curvlinops, {kind}"
    if hasattr(pk, "operator"):
        operator = pk.operator(case.model, case.batches, kind)
        tasks[own] = lambda: operator @ vector
    else:
        absent[own] = "not known"
    if peers.installed("curvlinops"):
        tasks[peer] = peers.curvlinops(case, kind, vector)
    else:
        absent[peer] = ABSENT
    both = len(tasks) == 2
    checked = (
        f"checked first: {_agreement(peer, tasks[peer](), tasks[own]())} relative" if both else "not checked"
    )
    seconds = interleaved({BASE: case.gradient, **tasks}, rounds)
    rows = [_cost(seconds, BASE, BASE)]
    for name in (own, peer):
        if name in absent:
            rows.append(_empty(name, absent[name]))
            continue
        gain = ratio(seconds, peer, own) if both and name == peer else None
        rows.append(_cost(seconds, name, name, gain=gain))
    show(f"{title}\n{checked}", COSTS, rows)


def selection(rounds: int, quick: bool) -> None:
    """Choosing the smallest 90 % exactly."""
    size = 10**7
    budget = round(0.9 * size)
    torch.manual_seed(0)
    scores = torch.randn(size).abs_()
    masks = {"w": torch.ones(size, dtype=torch.bool)}

    def own() -> torch.Tensor:
        return prune_smallest({"w": scores}, masks, budget)["w"]

    def peer() -> torch.Tensor:
        return torch.topk(scores, size - budget, sorted=False).values

    # Tied scores may be chosen differently, so values are compared.
    if not torch.equal(scores[own()].sort().values, peer().sort().values):
        raise SystemExit("prune_smallest and topk keep different scores")
    seconds = interleaved({"own": own, "peer": peer}, rounds)
    gain = f"{ratio(seconds, 'peer', 'own'):.1f}"
    large = "1e7" if quick else "1e8"
    extra = memory.peak(f"selection-{large}") / 1e9
    rows: list[list[object]] = [
        ["prunekit.masks.prune_smallest", f"{median(seconds, 'own'):.3f} s", "≤ 0.15 s", "", ""],
        ["torch.topk of the kept 10 %, unsorted", f"{median(seconds, 'peer'):.3f} s", "", gain, "≥ 1.5"],
        [f"extra peak memory at {large} scores", f"{extra:.2f} GB", "" if quick else "≤ 1.5 GB", "", ""],
    ]
    title = "Selection: prune 90 % of 10⁷ float32 scores\nchecked first: both keep the same scores"
    show(title, ["", "measured", "target", "prunekit is faster by", "target"], rows)


def peaks() -> None:
    """Peak memory of the exact diagonal; each method in a process of its own."""
    own = memory.peak("prunekit")
    rows: list[list[object]] = [["prunekit ggn_diagonal", f"{own / 1e9:.2f} GB", "", "below the others"]]
    for task, label in (("backpack", "BackPACK DiagGGNExact"), ("paper", "the paper's method")):
        if task == "backpack" and not peers.installed("backpack"):
            rows.append([label, ABSENT, "", ""])
            continue
        bytes_ = memory.peak(task)
        rows.append([label, f"{bytes_ / 1e9:.2f} GB", f"{bytes_ / own:.1f}", "> 1"])
    title = "Peak memory of the exact GGN diagonal above import, model and data: VGG11, 50 images"
    show(title, ["", "memory", "/ prunekit", "target"], rows)


def growths(rounds: int, quick: bool) -> None:
    """The exact diagonal over the gradient, as an MLP and its batch grow."""
    rows: list[list[object]] = []
    for group in growth.cases(quick):
        rows += [_growth(*case, rounds) for case in group] + [[""] * 6]
    title = "Growth of the exact GGN diagonal of an MLP; predicted by counting multiplications"
    columns = ["", "network, examples", "gradient", "ggn_diagonal", "ratio", "predicted"]
    show(title, columns, rows[:-1])


def _growth(label: str, hidden: tuple[int, ...], classes: int, examples: int, rounds: int) -> list[object]:
    case = networks.mlp(examples, classes, hidden)
    own = _statistic(case, pk.Statistic(OWN))
    seconds = interleaved({BASE: case.gradient, OWN: own}, rounds)
    sizes = "-".join(map(str, (growth.FEATURES, *hidden, classes)))
    return [
        label,
        f"{sizes}, {examples}",
        _time(median(seconds, BASE)),
        _time(median(seconds, OWN)),
        f"{ratio(seconds, OWN, BASE):.2f}",
        f"{growth.predicted(hidden, classes):.2f}",
    ]


def _cost(
    seconds: Mapping[str, list[float]],
    name: str,
    label: str,
    target: str = "",
    gain: float | None = None,
    least: float | None = None,
) -> list[object]:
    return [
        label,
        _time(median(seconds, name)),
        f"{ratio(seconds, name, BASE):.2f}",
        target,
        "" if gain is None else f"{gain:.2f}",
        "" if least is None else f"≥ {least:g}",
    ]


def _empty(label: str, why: str) -> list[object]:
    return [label, why, "", "", "", ""]


def _at_most(limit: float) -> str:
    return f"≤ {limit:g}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"


def main() -> None:
    sections = ["diagonals", "operators", "selection", "memory", "growth"]
    parser = argparse.ArgumentParser(
        description=inspect.getdoc(inspect.getmodule(main)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="5 rounds, not 11; no 1000 classes, no 10⁸ scores"
    )
    parser.add_argument("--only", nargs="+", choices=sections, default=sections, metavar="SUBJECT")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    given = parser.parse_args()
    rounds = 5 if given.quick else 11
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {rounds} rounds\n")
    tasks: dict[str, Callable[[], None]] = {
        "diagonals": lambda: diagonals(rounds, given.networks),
        "operators": lambda: operators(rounds, given.networks),
        "selection": lambda: selection(rounds, given.quick),
        "memory": peaks,
        "growth": lambda: growths(5, given.quick),
    }
    for section in sections:
        if section in given.only:
            tasks[section]()


if __name__ == "__main__":
    main()
