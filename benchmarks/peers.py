"""The same quantities by other people's libraries, each optional, and what must agree with what."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from networks import Case
from papers_method import ggn_diagonal
from torch import Tensor, nn

from prunekit_plugins.models._networks import VGG, Perceptron

Values = dict[str, Tensor]
Task = Callable[[], Values]


def installed(package: str) -> bool:
    return find_spec(package) is not None


def papers_method(case: Case) -> Task:
    """This project's own writing of the paper's method, on a copy whose gradients it may overwrite."""
    model = copy.deepcopy(case.model)
    return lambda: ggn_diagonal(model, case.x)


def backpack(case: Case, extension: str) -> Task:
    """A statistic by BackPACK, for the weights that prunekit covers.

    Args:
        case: A network that is a chain; BackPACK has no second-order rules for residual networks here.
        extension: The class of ``backpack.extensions``.
    """
    import backpack.extensions

    # Of the first layer, whose input needs no gradient, as in any training.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    # A copy, because extending leaves hooks behind that would slow the others down.
    model = copy.deepcopy(case.model)
    weights = {name: model.get_parameter(name) for name in case.weights}
    kept = {id(p) for p in weights.values()}
    for p in model.parameters():
        p.requires_grad_(id(p) in kept)
    chain, loss_fn = backpack.extend(_chain(model)), backpack.extend(nn.CrossEntropyLoss())
    make = getattr(backpack.extensions, extension)
    # Its gradients are of each example's share of the mean, 1/N of the example's own.
    scale = len(case.x) if extension == "SumGradSquared" else 1

    def task() -> Values:
        chain.zero_grad()
        quantity = make()
        with backpack.backpack(quantity):
            loss_fn(chain(case.x), case.y).backward()
        found = {name: getattr(p, quantity.savefield) for name, p in weights.items()}
        return found if scale == 1 else {name: scale * t for name, t in found.items()}

    return task


def _chain(model: nn.Module) -> nn.Sequential:
    """The model's own layers in one Sequential: BackPACK cannot see what a module's ``forward`` does between."""
    if isinstance(model, Perceptron):
        layers: list[nn.Module] = [nn.Flatten()]
        for layer in model.fc:
            # A module may stand in the chain once only, hence a new activation each time.
            layers += [layer, type(model.activation)()]
        return nn.Sequential(*layers[:-1])
    if isinstance(model, VGG):
        return nn.Sequential(*model.features, nn.Flatten(), *model.classifier)
    raise TypeError(f"no chain is known for {type(model).__name__}")


def curvlinops(case: Case, kind: str, vector: Mapping[str, Tensor]) -> Task:
    """A product with the GGN or Hessian by curvlinops; it has no exact diagonal, only estimates of one."""
    import curvlinops

    operators: dict[str, Any] = {
        "ggn": curvlinops.GGNLinearOperator,
        "hessian": curvlinops.HessianLinearOperator,
    }
    parameters = list(case.weights.values())
    operator = operators[kind](
        case.model, nn.CrossEntropyLoss(), parameters, case.batches, check_deterministic=False
    )
    columns = [vector[name] for name in case.weights]
    return lambda: dict(zip(case.weights, operator @ columns, strict=True))


def one_by_one(case: Case) -> Values:
    """The empirical Fisher's diagonal from its definition: each example's gradient, squared, and the mean."""
    weights = case.weights
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    for x, y in zip(case.x.split(1), case.y.split(1), strict=True):
        loss = nn.functional.cross_entropy(case.model(x), y)
        for name, g in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            total[name] += g.square()
    return {name: t / len(case.x) for name, t in total.items()}


def distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Largest norm, over the parameters, of a difference relative to what is expected."""
    return max(
        float((found[n].detach() - t.detach()).norm() / t.detach().norm()) for n, t in expected.items()
    )
