"""What lines, planes and spectra cost, beside bare passes, bare products, and other tools doing the same."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import networks
import torch
from timing import interleaved, ratio, show

import prunekit as pk
from prunekit.observing.moment import Moment, Surroundings
from prunekit.plugins.build import as_loss, estimators
from prunekit_plugins._landscape.spectrum import over_kept
from prunekit_plugins._linalg.lanczos import quadrature

ITERATIONS = 50


def grids(rounds: int) -> None:
    """A line of 101 points and a plane of 51×51 through the MLP, 1000 images, against as many bare forward passes."""
    case, other = networks.mlp(1000), networks.mlp(1000)
    with torch.no_grad():
        for weight in other.model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    ends = {"one": case.model.state_dict(), "other": copy.deepcopy(other.model.state_dict())}

    def bare(count: int) -> Callable[[], object]:
        def passes() -> None:
            with torch.no_grad():
                for _ in range(count):
                    torch.nn.functional.cross_entropy(case.model(case.x), case.y)

        return passes

    rows: list[list[object]] = []
    for name, spec, count, given in (
        ("line, 101 points", {"name": "line", "points": 101}, 101, ends),
        ("plane, 51×51 points", {"name": "plane", "points": 51}, 51 * 51, None),
    ):
        tasks = {
            name: lambda spec=spec, given=given: pk.probe(case.model, case.batches, spec, networks=given),
            "bare": bare(count),
        }
        seconds = interleaved(tasks, rounds if count < 1000 else 2)
        rows.append(
            [
                *(
                    name,
                    f"{statistics.median(seconds[name]):.2f} s",
                    f"{statistics.median(seconds['bare']):.2f} s",
                ),
                *(f"{ratio(seconds, name, 'bare'):.2f}", "<= 1.2"),
            ]
        )
    title = f"Losses along a line and in a plane, {torch.get_num_threads()} threads"
    show(title, ["probe", "time", "bare passes", "/ bare", "target"], rows)


def lanczos(examples: tuple[int, ...], rounds: int) -> None:
    """Lanczos on the Hessian of VGG11 with full reorthogonalisation, against its products alone and other tools."""
    rows: list[list[object]] = []
    for count in examples:
        case = networks.vgg11(count)
        weights = {name: p for name, p in case.model.named_parameters() if p.ndim > 1}
        masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in weights.items()}
        moment = Moment("dense", Surroundings(case.model, as_loss("cross_entropy"), estimators), masks)
        matrix = over_kept(moment, "hessian", list(case.batches), None)
        draw = torch.Generator().manual_seed(0)
        start = torch.randn(len(matrix.like), generator=draw)

        def whole(matrix: Any = matrix, start: Any = start, draw: Any = draw) -> None:
            with matrix.steady():
                quadrature(matrix.product, start, ITERATIONS, draw)

        def products(matrix: Any = matrix, start: Any = start) -> None:
            vector = start / start.norm()
            with matrix.steady():
                for _ in range(ITERATIONS):
                    vector = matrix.product(vector)
                    vector = vector / vector.norm()

        tasks: dict[str, Callable[[], object]] = {"prunekit": whole, "its products": products}
        for name, make in {"PyHessian": _pyhessian, "hessian-eigenthings": _eigenthings}.items():
            task = make(case)
            if task is not None:
                tasks[name] = task
        seconds = interleaved(tasks, rounds)
        for name in tasks:
            target = {"its products": "<= 1.3", "prunekit": ""}.get(name, ">= 2")
            value = (
                ratio(seconds, "prunekit", name)
                if name == "its products"
                else ratio(seconds, name, "prunekit")
            )
            rows.append(
                [
                    *(count if name == "prunekit" else "", name, f"{statistics.median(seconds[name]):.1f} s"),
                    *("" if name == "prunekit" else f"{value:.2f}", target),
                ]
            )
    show(
        f"{ITERATIONS} Lanczos iterations on VGG11, {torch.get_num_threads()} threads "
        "(prunekit over its products; other tools over prunekit)",
        ["images", "what", "time", "ratio", "target"],
        rows,
    )


def _pyhessian(case: networks.Case) -> Callable[[], object] | None:
    """Its spectral density, which keeps the gradient's graph from product to product."""
    if find_spec("pyhessian") is None:
        return None
    module = import_module("pyhessian")
    # Which torch has dropped; PyHessian calls it once, at the end.
    torch.eig = lambda matrix, eigenvectors: [  # type: ignore[attr-defined]
        part if part.ndim > 1 else part.unsqueeze(1) for part in torch.linalg.eigh(matrix)
    ]

    def density() -> object:
        own = module.hessian(case.model, torch.nn.CrossEntropyLoss(), data=(case.x, case.y), cuda=False)
        found = own.density(iter=ITERATIONS, n_v=1)
        case.model.zero_grad(set_to_none=True)
        return found

    return density


def _eigenthings(case: networks.Case) -> Callable[[], object] | None:
    if find_spec("hessian_eigenthings") is None:
        return None
    module = import_module("hessian_eigenthings")

    def tridiagonal() -> object:
        criterion = module.supervised_loss(torch.nn.functional.cross_entropy)
        operator = module.HessianOperator(case.model, [(case.x, case.y)], criterion)
        start = torch.randn(operator.size, generator=torch.Generator().manual_seed(0))
        found = module.lanczos_tridiagonal(operator, start, ITERATIONS, reorthogonalize=True)
        case.model.zero_grad(set_to_none=True)
        return found

    return tridiagonal
