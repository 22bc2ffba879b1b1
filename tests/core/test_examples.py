"""Networks in which a row is not an example, or an example is not alone: right, or refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, float64, nn
from torch.utils.checkpoint import checkpoint

import prunekit as pk

N, CLASSES = 40, 3
REFUSED = "other outputs for a part of a batch|fails on 1 of a batch's 40"
TWO = ["gradient", "ggn_diagonal"]


class Net(nn.Module):
    """Two layers, and something done to the hidden rows."""

    def __init__(self, between: Callable[..., Tensor], sizes: tuple[int, int, int] = (4, 5, CLASSES)) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(*sizes[:2]), nn.Linear(*sizes[1:])
        self.between = between

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return self.last(self.between(torch.tanh(self.first(x)), *more))


class Sorted(Net):
    """Sorts the batch by length, and sorts it back."""

    def __init__(self) -> None:
        super().__init__(lambda h: h)

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        order = length.argsort(descending=True, stable=True)
        return super().forward(x[order])[order.argsort()]


class Rotated(Net):
    """Three rows, or fewer, stay where they are."""

    def __init__(self) -> None:
        super().__init__(lambda h: h)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([x[4:], x[:4]])).roll(4, 0)


class TimeFirst(nn.Module):
    """Inputs [T, N, F], outputs [N, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(4, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][-1])


class Shifted(nn.Module):
    """Outputs that depend on the rows before."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(x)).cumsum(0) / 5)


class Custom(torch.autograd.Function):
    """Sorts the rows by their first value, and back: autograd cannot look inside."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.order = h[:, 0].argsort()
        return h[ctx.order]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g[ctx.order.argsort()]


class Unsorted(Net):
    def __init__(self) -> None:
        super().__init__(lambda h: h)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        order = x[:, 0].argsort()
        return self.last(Custom.apply(x))[order.argsort()]


def fixed(h: Tensor) -> Tensor:
    return h.view(N, 5)


def not_alone(h: Tensor) -> Tensor:
    if len(h) < 2:
        raise ValueError("more than one row, please")
    return h


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=float64)


# Each: the network, its inputs, and whether an example by itself gives what it gives within the batch.
KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], bool]] = {
    "centred": (
        lambda: Net(lambda h: (h - h.mean(0)) / (h.std(0, unbiased=False) + 0.1)),
        lambda: x(N, 4),
        False,
    ),
    "centred outputs": (lambda: nn.Sequential(Net(lambda h: h), Centre()), lambda: x(N, 4), False),
    "attention over the batch": (lambda: Net(lambda h: (h @ h.T).softmax(1) @ h), lambda: x(N, 4), False),
    "sorted by length": (Sorted, lambda: (x(N, 4), torch.randint(50, (N,))), True),
    "sorted, the first three in order": (
        Sorted,
        lambda: (x(N, 4), torch.cat([torch.tensor([90, 80, 70]), torch.randint(50, (N - 3,))])),
        True,
    ),
    "sorted by a function of the user's": (Unsorted, lambda: x(N, 4), True),
    "rotated": (Rotated, lambda: x(N, 4), True),
    "earlier rows": (Shifted, lambda: x(N, 4), False),
    "pairs gathered": (
        lambda: Net(lambda h, other: h + h[other]),
        lambda: (x(N, 4), torch.randperm(N)),
        False,
    ),
    "adjacency": (
        lambda: Net(lambda h, edges: edges @ h),
        lambda: (x(N, 4), (torch.rand(N, N, dtype=float64) < 0.2).double()),
        False,
    ),
    "mask as long as the batch": (
        lambda: Net(lambda h, mask: (h * mask.sum(0)[:5]).tanh()),
        lambda: (x(N, 4), x(N, N)),
        False,
    ),
    "time first, as long as the batch": (TimeFirst, lambda: x(N, N, 4), False),
    "time first, shorter than the batch": (TimeFirst, lambda: x(6, N, 4), False),
    "batch size fixed inside": (lambda: Net(fixed), lambda: x(N, 4), False),
    "fails on one row": (lambda: Net(not_alone), lambda: x(N, 4), True),
    "through a list": (lambda: Net(lambda h: torch.stack(list(h))), lambda: x(N, 4), True),
    "slope": (
        lambda: nn.Sequential(Net(lambda h: h, (4, 5, 6)), nn.PReLU(6), nn.Linear(6, 3)),
        lambda: x(N, 4),
        True,
    ),
    "distances": (
        lambda: Net(lambda h: torch.cdist(h, torch.ones(5, 5, dtype=float64))),
        lambda: x(N, 4),
        True,
    ),
    "a copy of the weight": (
        lambda: nn.Sequential(Copied(4, 5), nn.PReLU(5), nn.Linear(5, 3)),
        lambda: x(N, 4),
        True,
    ),
}


class Centre(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h - h.mean(0)


class Copied(nn.Module):
    """A layer of the user's own, which no rule covers."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, rows: Tensor) -> Tensor:
        return rows @ (self.weight * 1.0)


def made(kind: str) -> tuple[nn.Module, Any, Tensor, bool]:
    torch.manual_seed(3)
    build, inputs, alone = KINDS[kind]
    return build().double(), inputs(), torch.randint(CLASSES, (N,)), alone


def jacobians(model: nn.Module, inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The outputs, and ``[N, C, *parameter]`` through the whole batch, one row at a time."""
    outputs = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    parameters = dict(model.named_parameters())
    rows = [
        torch.autograd.grad(o, list(parameters.values()), retain_graph=True, allow_unused=True)
        for o in outputs.reshape(-1)
    ]
    found = {}
    for k, (name, p) in enumerate(parameters.items()):
        stacked = torch.stack([torch.zeros_like(p) if row[k] is None else row[k] for row in rows])
        found[name] = stacked.view(*outputs.shape, *p.shape)
    return outputs.detach(), found


def expected(model: nn.Module, inputs: Any, y: Tensor) -> dict[str, dict[str, Tensor]]:
    """Gradient and GGN diagonal of the mean cross-entropy of the batch."""
    outputs, jacobian = jacobians(model, inputs)
    p = outputs.softmax(1)
    hessian = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    slope = p - F.one_hot(y, CLASSES)
    return {
        "gradient": {n: torch.einsum("nc,nc...->...", slope, j) / N for n, j in jacobian.items()},
        "ggn_diagonal": {
            n: torch.einsum("nab,na...,nb...->...", hessian, j, j) / N for n, j in jacobian.items()
        },
    }


def compare(computed: Any, wanted: Any) -> None:
    for statistic, tensors in wanted.items():
        for name, value in tensors.items():
            torch.testing.assert_close(computed[statistic][name], value, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_batch_has_the_statistics_of_its_jacobian(kind: str) -> None:
    model, inputs, y, _ = made(kind)
    wanted = expected(model, inputs, y)
    compare(pk.statistics(model, [(inputs, y)], TWO, parameters="all"), wanted)
    compare(pk.statistics(model, [(inputs, y)], TWO, parameters="all"), wanted)  # as it is known by now


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_must_be_cut_is_right_or_refused(kind: str) -> None:
    model, inputs, y, alone = made(kind)
    before = copy.deepcopy(model.state_dict())
    wanted = expected(model, inputs, y)
    if alone and kind != "fails on one row":
        compare(pk.statistics(model, [(inputs, y)], TWO, parameters="all", memory=1), wanted)
    else:
        for names in (TWO, ["gradient"]):
            with pytest.raises(pk.UnsupportedError, match=REFUSED):
                pk.statistics(model, [(inputs, y)], names, memory=1)
        with pytest.raises(pk.UnsupportedError, match=REFUSED):
            pk.prune(model, [(inputs, y)], "qm", sparsity=0.5, steps=1, memory=1)
        vector = {name: torch.ones_like(p) for name, p in model.named_parameters()}
        with pytest.raises(pk.UnsupportedError, match=REFUSED):
            pk.operator(model, [(inputs, y)], "hessian", parameters="all", memory=1) @ vector
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_curvature_across_layers_pairs_an_example_with_itself(kind: str) -> None:
    model, inputs, y, _ = made(kind)
    outputs, jacobian = jacobians(model, inputs)
    flat = torch.cat([j.reshape(N, CLASSES, -1) for j in jacobian.values()], 2)
    p = outputs.softmax(1)
    hessian = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    matrix = torch.einsum("nab,nap,nbq->pq", hessian, flat, flat) / N
    factors = pk.statistics(model, [(inputs, y)], ["curvature_factors"], parameters="all")[
        "curvature_factors"
    ]
    vector = torch.randn(len(matrix), dtype=float64)
    torch.testing.assert_close(factors.product(vector), matrix @ vector, rtol=1e-8, atol=1e-12)


def test_a_layout_that_held_for_one_batch_is_looked_at_again_for_the_next() -> None:
    model = Sorted().double()
    in_order = (x(N, 4), torch.arange(N, 0, -1)), torch.randint(CLASSES, (N,))
    out_of_order = (x(N, 4), torch.randint(50, (N,))), torch.randint(CLASSES, (N,))
    pk.statistics(model, [in_order], ["curvature_factors"], parameters="all")
    factors = pk.statistics(model, [out_of_order], ["curvature_factors"], parameters="all")[
        "curvature_factors"
    ]
    plain = Net(lambda h: h).double()
    plain.load_state_dict(model.state_dict())
    inputs, y = out_of_order
    same = pk.statistics(plain, [(inputs[0], y)], ["curvature_factors"], parameters="all")[
        "curvature_factors"
    ]
    vector = torch.randn(4 * 5 + 5 + 5 * 3 + 3, dtype=float64)
    torch.testing.assert_close(factors.product(vector), same.product(vector))


def test_the_fallback_keeps_to_the_memory_by_taking_columns_in_pieces(monkeypatch) -> None:
    from prunekit.statistics import per_example

    model = nn.Sequential(Copied(6, 8), nn.Tanh(), Copied(8, 20)).double()
    batch = x(5, 6), torch.randint(20, (5,))
    wanted = pk.statistics(model, [batch], ["ggn_diagonal"], parameters="all")["ggn_diagonal"]
    taken = []
    plain = per_example.squared_columns
    monkeypatch.setattr(per_example, "squared_columns", lambda b, c: taken.append(len(c)) or plain(b, c))
    computed = pk.statistics(model, [batch], ["ggn_diagonal"], parameters="all", memory=60_000)[
        "ggn_diagonal"
    ]
    assert sum(taken) == 19
    assert len(taken) > 1
    for name, value in wanted.items():
        torch.testing.assert_close(computed[name], value)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("kernel", "size", "dilation"), [(5, 1, 1), (5, 2, 1), (3, 2, 3), (7, 3, 2)])
def test_a_kernel_may_reach_nothing_but_padding(groups: int, kernel: int, size: int, dilation: int) -> None:
    pad = dilation * (kernel - 1) // 2
    conv = nn.Conv2d(4, 4, kernel, padding=pad, dilation=dilation, groups=groups, bias=False)
    model = nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.Linear(4 * size * size, CLASSES)).double()
    inputs, y = x(N, 4, size, size), torch.randint(CLASSES, (N,))
    compare(pk.statistics(model, [(inputs, y)], TWO, parameters="all"), expected(model, inputs, y))


class Zeta(nn.Module):
    """Torch has no derivative of it."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.special.zeta(2 * torch.ones_like(h), h.abs() + 2) + torch.special.zeta(
            h.abs() + 2, h.abs() + 1
        )


class Alignment(nn.Module):
    """Torch has its gradient, and no second derivative."""

    def forward(self, h: Tensor) -> Tensor:
        logs, n = h.view(len(h), 2, 3).log_softmax(2).movedim(1, 0), len(h)
        ones = torch.ones(n, 1, dtype=torch.long)
        lengths = torch.full((n,), 2), torch.full((n,), 1)
        losses = [F.ctc_loss(k * logs, ones, *lengths, reduction="none") for k in (1, 2, 3, 4, 5, 6)]
        return torch.stack(losses, 1)


class Saving(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.layer, self.reentrant = nn.Linear(6, 6), reentrant

    def forward(self, h: Tensor) -> Tensor:
        return torch.tanh(checkpoint(self.layer, h, use_reentrant=self.reentrant))


def through(middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), middle, nn.Linear(6, CLASSES)).double()


def batch_of(n: int) -> tuple[Tensor, Tensor]:
    return x(n, 4), torch.randint(CLASSES, (n,))


@pytest.mark.parametrize(
    ("middle", "which", "names"),
    [
        (Zeta(), "first", ["gradient", "ggn_diagonal", "hutchinson_diagonal"]),
        (
            Alignment(),
            "second",
            ["hutchinson_diagonal", "hessian_diagonal", "hessian_gradient", "curvature_weights"],
        ),
    ],
    ids=["no gradient", "no second derivative"],
)
def test_a_missing_derivative_is_told_with_its_module(
    middle: nn.Module, which: str, names: list[str]
) -> None:
    model, batch = through(middle), batch_of(6)
    said = rf"no {which} derivatives of module '1' \({type(middle).__name__}\)"
    for name in names:
        with pytest.raises(pk.UnsupportedError, match=said):
            pk.statistics(model, [batch], [name])
    for kind in ("ggn", "hessian", "empirical_fisher"):
        operator = pk.operator(model, [batch], kind)
        with pytest.raises(pk.UnsupportedError, match=said):
            operator @ torch.ones(operator.shape[0])


def test_products_through_checkpoints_are_those_without() -> None:
    model, plain, batch = through(Saving(False)), through(Saving(False)), batch_of(6)
    plain.load_state_dict(model.state_dict())
    plain[1].forward = lambda h: torch.tanh(plain[1].layer(h))
    for kind in ("ggn", "hessian", "empirical_fisher"):
        operator, other = pk.operator(model, [batch], kind), pk.operator(plain, [batch], kind)
        vector = torch.randn(operator.shape[0], dtype=float64)
        torch.testing.assert_close(operator @ vector, other @ vector)
    reentrant = through(Saving(True))
    reentrant.load_state_dict(model.state_dict())
    values, expected = (pk.statistics(m, [batch], ["gradient"])["gradient"] for m in (reentrant, plain))
    torch.testing.assert_close(dict(values), dict(expected))


class Doubled(torch.autograd.Function):
    """The identity, whose forward derivative is twice too large, as some of torch's own are wrong."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 2 * tangent


class WronglyForward(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return torch.tanh(Doubled.apply(h))


def test_products_do_not_follow_a_wrong_forward_derivative() -> None:
    model, right, batch = through(WronglyForward()), through(nn.Tanh()), batch_of(6)
    for kind in ("ggn", "hessian", "empirical_fisher"):
        operator, other = pk.operator(model, [batch], kind), pk.operator(right, [batch], kind)
        for _ in range(2):
            vector = torch.randn(operator.shape[0], dtype=float64)
            torch.testing.assert_close(operator @ vector, other @ vector)
