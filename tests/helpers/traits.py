"""Networks with one awkward trait each, and what must hold of them on any device."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import Oracle
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import prunekit as pk

EXAMPLES, WIDTH, CLASSES = 6, 5, 3
Forward = Callable[["Network", Tensor], Tensor]


class Network(nn.Module):
    """Two layers with something between or around them."""

    def __init__(self, forward: Forward | None = None, **modules: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        for name, module in modules.items():
            self.add_module(name, module)
        self.trait = forward
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(x) if self.trait is None else self.trait(self, x)

    def plain(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


def changes_its_input(model: Network, x: Tensor) -> Tensor:
    x -= x.mean(1, keepdim=True)
    return model.plain(x)


def counts_its_calls(model: Network, x: Tensor) -> Tensor:
    model.calls += 1
    return model.plain(x) * (1 + 0.1 * model.calls)


def examples_see_each_other(model: Network, x: Tensor) -> Tensor:
    return model.last(torch.tanh(model.first(x) - model.first(x).mean(0)))


def examples_see_the_first(model: Network, x: Tensor) -> Tensor:
    h = torch.tanh(model.first(x))
    return model.last(h * h[:1])


def sums_up_along_the_batch(model: Network, x: Tensor) -> Tensor:
    return model.last(torch.tanh(model.first(x)).cumsum(0))


def sorts_the_batch(model: Network, x: Tensor) -> Tensor:
    order = x[:, 0].argsort()
    return model.plain(x[order])[order.argsort()]


def turns_the_batch(model: Network, x: Tensor) -> Tensor:
    return model.last(torch.tanh(model.first(x.flip(0))).flip(0))


def hands_on_to_the_next(model: Network, x: Tensor) -> Tensor:
    return model.last(torch.tanh(model.first(x)).roll(1, 0))


def time_first(model: Network, x: Tensor) -> Tensor:
    h = torch.tanh(model.first(x.unsqueeze(0)))  # [time, examples, width]
    return model.last(h).squeeze(0)


def folds_the_batch(model: Network, x: Tensor) -> Tensor:
    return model.plain(x.view(2, -1, WIDTH)).flatten(0, 1)


def wants_all_rows(model: Network, x: Tensor) -> Tensor:
    if len(x) != EXAMPLES:
        raise ValueError(f"made for {EXAMPLES} rows")
    return model.plain(x)


def wants_two_rows(model: Network, x: Tensor) -> Tensor:
    if len(x) < 2:
        raise ValueError("one row has no variance")
    return model.plain(x)


def differentiates_itself(model: Network, x: Tensor) -> Tensor:
    with torch.enable_grad():
        inside = x if x.requires_grad else x.detach().requires_grad_()
        energy = model.first(inside).tanh().square().sum()
        (force,) = torch.autograd.grad(energy, inside, create_graph=True)
    return model.last(force)


def casts_inside(model: Network, x: Tensor) -> Tensor:
    return model.plain(x.float().double())


def detaches(model: Network, x: Tensor) -> Tensor:
    return model.last(torch.tanh(model.first(x)).detach())


def through_prelu(model: Network, x: Tensor) -> Tensor:
    return model.last(model.act(model.first(x)))


def checkpointed(model: Network, x: Tensor) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    return model.last(checkpoint(lambda x: torch.tanh(model.first(x)), x, use_reentrant=False))


def distances(model: Network, x: Tensor) -> Tensor:
    return model.last(torch.cdist(model.first(x).unsqueeze(1), model.places.weight.unsqueeze(0)).squeeze(1))


def in_place_between(model: Network, x: Tensor) -> Tensor:
    h = model.first(x)
    h.mul_(2.0)
    return model.last(F.relu_(h))


FORWARDS: dict[str, Callable[[], Network]] = {
    function.__name__.replace("_", " "): lambda function=function: Network(function)
    for function in (
        changes_its_input,
        counts_its_calls,
        examples_see_each_other,
        examples_see_the_first,
        sums_up_along_the_batch,
        sorts_the_batch,
        turns_the_batch,
        hands_on_to_the_next,
        time_first,
        folds_the_batch,
        wants_all_rows,
        wants_two_rows,
        differentiates_itself,
        casts_inside,
        detaches,
        checkpointed,
        in_place_between,
    )
}


def weight_norm() -> Network:
    model = Network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(model.first)
    return model


def spectral_norm() -> Network:
    model = Network()
    parametrizations.spectral_norm(model.first)
    return model


def one_memory() -> Network:
    model = Network()
    model.first.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
    model.other = nn.Linear(WIDTH, WIDTH, bias=False)
    model.other.weight = nn.Parameter(model.first.weight.data)
    model.trait = lambda model, x: model.last(torch.tanh(model.other(torch.tanh(model.first(x)))))
    return model


def hooked_parameter() -> Network:
    model = Network()
    model.first.weight.register_hook(lambda gradient: 2 * gradient)
    return model


def hooked_module() -> Network:
    model = Network()
    model.first.register_full_backward_hook(lambda module, before, after: (before[0] * 3,))
    return model


def frozen() -> Network:
    model = Network()
    model.first.weight.requires_grad_(False)
    return model


TRAITS: dict[str, Callable[[], nn.Module]] = {
    **FORWARDS,
    "plain": Network,
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
    "two parameters over one memory": one_memory,
    "a hook on a parameter": hooked_parameter,
    "a hook on a module": hooked_module,
    "a frozen weight": frozen,
    "prelu": lambda: Network(through_prelu, act=nn.PReLU()),
    "distances": lambda: Network(distances, places=nn.Linear(WIDTH, WIDTH, bias=False)),
    "an unused layer": lambda: Network(idle=nn.Linear(2, 2)),
    "a layer of width zero": lambda: Network(none=nn.Linear(0, 2)),
    "data parallel": lambda: nn.DataParallel(Network()),
    "compiled": lambda: torch.compile(Network(), backend="eager"),
}

INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda x: x,
    "strided": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "made in inference mode": lambda x: inference(x),
    "with a gradient of their own": lambda x: x.clone().requires_grad_(),
}


def inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy({**dict(model.named_parameters()), **dict(model.named_buffers())})


def assert_close(values: Any, expected: Any, what: str) -> None:
    for name, value in expected.items():
        off = float((values[name] - value).abs().max()) if value.numel() else 0.0
        assert off <= 1e-8 * max(1e-3, float(value.abs().max() if value.numel() else 0)), f"{what} of {name}"


STATISTICS = ["gradient", "ggn_diagonal", "empirical_fisher_diagonal", "hessian_diagonal"]


def made(trait: str) -> nn.Module:
    """The same network each time."""
    torch.manual_seed(0)
    return TRAITS[trait]().double().eval()


def right_or_refused(trait: str, inputs: str, device: str) -> None:
    """Every statistic is the oracle's, computed on the CPU, or the network is refused; it is left as it was."""
    model = made(trait).to(device)
    start = torch.randn(EXAMPLES, WIDTH, dtype=torch.float64)
    x, y = INPUTS[inputs](start.to(device)), torch.randint(CLASSES, (EXAMPLES,)).to(device)
    before, given = state(model), x.detach().clone()
    for statistic in STATISTICS:
        try:
            values = pk.statistics(model, [(x, y)], [statistic])[statistic]
        except pk.PrunekitError:
            continue
        finally:
            assert all(torch.equal(value, before[name]) for name, value in state(model).items())
            assert torch.equal(x.detach(), given)
        twin = made(trait)
        for name, parameter in [*twin.named_parameters()]:
            parameter.requires_grad_()
            parameter._backward_hooks = None
            assert name in before
        for module in twin.modules():
            module._backward_hooks.clear()
        if isinstance(twin, nn.DataParallel):
            names = [name.removeprefix("module.") for name in values]
            oracle = Oracle(twin.module, start.clone(), y.cpu(), names)
            expected = {f"module.{n}": v for n, v in oracle.statistics()[statistic]().items()}
        else:
            expected = Oracle(twin, start.clone(), y.cpu(), list(values)).statistics()[statistic]()
        assert_close({name: value.cpu() for name, value in values.items()}, expected, statistic)


def measures_its_own_change_or_refuses(trait: str, criterion: str, device: str) -> None:
    """What a step measures is what a bare evaluation before and after it gives; or nothing has changed."""
    model, twin, again = made(trait).to(device), made(trait).to(device), made(trait).to(device)
    x = torch.randn(EXAMPLES, WIDTH, dtype=torch.float64).to(device)
    y = torch.randint(CLASSES, (EXAMPLES,)).to(device)
    before = state(model)
    dense = float(F.cross_entropy(again(x.clone()), y).detach())
    try:
        pruning = pk.prune(model, [(x, y)], criterion, sparsity=0.4, steps=1)
    except pk.PrunekitError:
        assert all(torch.equal(value, before[name]) for name, value in state(model).items())
        return
    zeros = sum(int((model.get_parameter(n) == 0).sum()) for n in pruning.masks)
    assert zeros == pruning.steps[0].pruned
    pruned = state(model)
    with torch.no_grad():
        for name, value in [*twin.named_parameters()]:
            value.copy_(pruned[name])
    after = float(F.cross_entropy(twin(x.clone()), y).detach())
    assert pruning.steps[0].delta_loss == pytest.approx(after - dense, rel=1e-8, abs=1e-12)
