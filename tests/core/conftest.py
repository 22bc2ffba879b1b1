"""Awkward networks in one list, and naive twins: one example at a time, plain autodiff, sorting."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import adaptive
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jacrev
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_map

from prunekit.plugins.host import default_manager

EXAMPLES = 7
CLASSES = 3


@dataclass
class Network:
    """A small network with a few examples, in float64."""

    model: nn.Module
    x: Any
    y: Tensor

    def batches(self, *sizes: int) -> list[tuple[Any, Tensor]]:
        """Batches of these sizes; by default ragged ones."""
        found, start = [], 0
        for size in sizes or (4, 3):
            found.append((_rows(self.x, start, start + size), self.y[start : start + size]))
            start += size
        return found


def _rows(x: Any, start: int, stop: int) -> Any:
    return tree_map(lambda t: t[start:stop], x)


def _normal(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(EXAMPLES, *shape)


def _tokens(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(5, (EXAMPLES, *shape))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv1d(3, 3, 3, padding=1)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.inner(x).tanh()).flatten(1))


class TiedLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).tanh()).tanh())


class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.embedding(x)).tanh().mean(1))


class SparseEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4, sparse=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x).mean(1))


class Twice(nn.Module):
    """One convolution at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv1d(2, 2, 3, padding=1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(F.avg_pool1d(self.shared(x).tanh(), 2)).flatten(1))


class TwoGroupings(nn.Module):
    """One weight in two convolutions with different numbers of groups."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 2, 3))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.conv1d(F.conv1d(x, self.w).tanh(), self.w, groups=2).flatten(1))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, CLASSES)
        self.idle = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.idle(x)  # used, but not for the outputs
        return self.head(x)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.mix = nn.Linear(4, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.norm(x)).relu().mean(1))


class SequenceFirst(nn.Module):
    """Tokens as T×N×D inside; the class token is one of three, as many as the layout check's examples."""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 5)
        self.head = nn.Linear(5, CLASSES)
        self.token = token

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(x.transpose(0, 1)).tanh()[self.token])


class Folded(nn.Module):
    """Tokens folded into the batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        return self.head(self.mix(x.reshape(n * t, d)).tanh().view(n, t, -1).mean(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(5, 4))
        self.b = nn.Parameter(torch.randn(1))
        self.v = nn.Parameter(torch.randn(5, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w, self.b).tanh() @ self.v


class SometimesTwice(nn.Module):
    """A second use of a weight that only some examples take, in a form that is not a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(CLASSES, 4))

    def forward(self, x: Tensor) -> Tensor:
        outputs = F.linear(x, self.w)
        chosen = x[:, :1] > 0
        return outputs + (chosen * x.tanh()) @ self.w.T if chosen.any() else outputs


class CustomParameters(nn.Module):
    """Sums of parameters: autograd returns one tensor for two of them, and an expanded one."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(CLASSES, 4))
        self.delta = nn.Parameter(torch.randn(CLASSES, 4))
        self.shift = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w + self.delta) + self.shift.sum() * torch.arange(3.0, dtype=x.dtype)


class Mixture(nn.Module):
    """Each example goes to one expert; the first three examples all go to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, CLASSES) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        outputs = x.new_zeros(len(x), CLASSES)
        for i, expert in enumerate(self.experts):
            rows = ((x[:, 0] > 0).long() == i).nonzero().squeeze(1)
            if len(rows):
                outputs = outputs.index_add(0, rows, expert(x[rows]))
        return outputs


class OneByOne(nn.Module):
    """Loops over its examples, each without a batch axis and with as many channels as classes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 2)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.head(self.convolution(one).tanh().flatten()) for one in x])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 4)
        self.right = nn.Linear(3, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head((self.left(a) * self.right(b)).relu())


def _batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    nn.init.normal_(norm.weight)
    return _classifier(nn.Conv2d(2, 3, 3), norm, nn.ReLU(inplace=True), features=27)


def _classifier(*layers: nn.Module, features: int) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, CLASSES))


def _weight_norm() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, CLASSES))


def _routed() -> Tensor:
    x = torch.randn(EXAMPLES, 4)
    x[:, 0] = torch.tensor([-1.0, -2.0, -1.0, 1.0, 2.0, -1.0, 1.0])
    return x


_NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "linear": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)),
        _normal(4),
    ),
    "stride_that_leaves_a_rest": (
        lambda: _classifier(nn.Conv2d(2, 3, 2, stride=(3, 2), padding=(0, 1)), nn.Tanh(), features=24),
        _normal(2, 6, 6),
    ),
    "padding_reflect": (
        lambda: _classifier(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), nn.Tanh(), features=32),
        _normal(2, 4, 4),
    ),
    "padding_circular": (
        lambda: _classifier(nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), nn.Tanh(), features=24),
        _normal(2, 6),
    ),
    "padding_same_and_uneven": (
        lambda: _classifier(nn.Conv2d(2, 2, (2, 4), padding="same", dilation=(1, 2)), features=32),
        _normal(2, 4, 4),
    ),
    "groups": (
        lambda: _classifier(
            nn.Conv2d(4, 6, 2, groups=2), nn.Tanh(), nn.Conv2d(6, 6, 2, groups=6), features=6
        ),
        _normal(4, 3, 3),
    ),
    "dilation": (
        lambda: _classifier(nn.Conv2d(2, 3, 2, dilation=2), nn.Tanh(), features=27),
        _normal(2, 5, 5),
    ),
    "transposed": (
        lambda: _classifier(
            nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2),
            nn.Tanh(),
            features=128,
        ),
        _normal(4, 3, 3),
    ),
    "transposed_1d": (
        lambda: _classifier(nn.ConvTranspose1d(2, 3, 3, stride=3), nn.Tanh(), features=27),
        _normal(2, 3),
    ),
    "transposed_3d": (
        lambda: _classifier(nn.ConvTranspose3d(2, 1, 2, padding=(0, 1, 0)), nn.Tanh(), features=9),
        _normal(2, 2, 2, 2),
    ),
    "conv_1d": (lambda: _classifier(nn.Conv1d(2, 3, 3), nn.Tanh(), features=30), _normal(2, 12)),
    "conv_3d": (
        lambda: _classifier(nn.Conv3d(2, 2, 2, stride=(1, 2, 1)), nn.Tanh(), features=8),
        _normal(2, 2, 4, 3),
    ),
    "batch_norm": (_batch_norm, _normal(2, 5, 5)),
    "instance_norm": (
        lambda: _classifier(nn.Conv1d(2, 3, 2), nn.InstanceNorm1d(3, affine=True), features=12),
        _normal(2, 5),
    ),
    "residual": (Residual, _normal(3, 4)),
    "tied_linear": (TiedLinear, _normal(4)),
    "tied_embedding": (TiedEmbedding, _tokens(3)),
    "sparse_embedding": (SparseEmbedding, _tokens(4)),
    "used_twice": (Twice, _normal(2, 6)),
    "used_with_two_groupings": (TwoGroupings, _normal(2, 6)),
    "unused": (Unused, _normal(4)),
    "tokens_and_layer_norm": (Tokens, _normal(3, 4)),
    "sequence_first": (lambda: SequenceFirst(-1), _normal(5, 4)),
    "sequence_first_first_token_of_three": (lambda: SequenceFirst(0), _normal(3, 4)),
    "sequence_first_last_token_of_three": (lambda: SequenceFirst(-1), _normal(3, 4)),
    "folded": (Folded, _normal(3, 4)),
    "attention": (Attention, _normal(3, 4)),
    "in_place_relu": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, CLASSES)),
        _normal(4),
    ),
    "functional": (Functional, _normal(4)),
    "sometimes_used_twice": (SometimesTwice, _routed),
    "weight_norm": (_weight_norm, _normal(4)),
    "custom_parameters": (CustomParameters, _normal(4)),
    "mixture": (Mixture, _routed),
    "one_by_one": (OneByOne, _normal(3, 3, 3)),
    "recurrent": (Recurrent, _normal(3, 4)),
    "tuple_input": (TwoInputs, lambda: (torch.randn(EXAMPLES, 4), torch.randn(EXAMPLES, 3))),
    "mapping_input": (TwoInputs, lambda: {"b": torch.randn(EXAMPLES, 3), "a": torch.randn(EXAMPLES, 4)}),
}


def _build(name: str) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(sum(map(ord, name)))
        model, x = (make() for make in _NETWORKS[name])
        y = torch.randint(CLASSES, (EXAMPLES,))
    return Network(model.double(), tree_map(lambda t: t.double() if t.is_floating_point() else t, x), y)


_EVEN = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch says it is slow


@pytest.fixture(params=[pytest.param(n, marks=_EVEN) if "uneven" in n else n for n in _NETWORKS])
def network(request: pytest.FixtureRequest) -> Network:
    """Each of the awkward networks."""
    return _build(request.param)


@pytest.fixture
def build() -> Callable[[str], Network]:
    """One of the awkward networks by name."""
    return _build


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The same numbers in any order of tests, and one thread: the tensors are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def _call(model: nn.Module, x: Any) -> Tensor:
    if isinstance(x, dict):
        return model(**x)
    return model(*x) if isinstance(x, tuple) else model(x)


def _statistics(
    model: nn.Module, x: Any, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradient and GGN diagonal of ``loss`` on the whole set at once, from one-example Jacobians."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    parameters = dict(model.named_parameters())
    singles = [_call(model, _rows(x, i, i + 1)) for i in range(len(y))]
    outputs = torch.cat(singles).detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(loss(outputs, y), outputs)
    n, k = len(outputs), outputs[0].numel()
    # Not torch.func.hessian, whose forward mode warns of a deprecation.
    curvature = jacrev(jacrev(lambda o: loss(o, y)))(outputs.detach()).reshape(n, k, n, k)
    gradient = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
    diagonal = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
    for i, output in enumerate(singles):
        rows = [
            torch.autograd.grad(o, list(parameters.values()), retain_graph=True, allow_unused=True)
            for o in output.flatten()
        ]
        for name, found in zip(parameters, zip(*rows, strict=True), strict=True):
            jacobian = torch.stack(
                [torch.zeros_like(gradient[name]) if g is None else g.to_dense() for g in found]
            )
            gradient[name] += torch.einsum("k,k...->...", slope[i].flatten(), jacobian)
            diagonal[name] += torch.einsum("kl,k...,l...->...", curvature[i, :, i], jacobian, jacobian)
    return gradient, diagonal


def _loss(model: nn.Module, x: Any, y: Tensor) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(_call(copy.deepcopy(model).eval(), x), y))


def _change(criterion: str, w: Tensor, g: Tensor, d: Tensor) -> Tensor:
    """The loss model's change for removing each weight; magnitude's is the one with d = 1."""
    first = -g * w if criterion in ("lm", "qm") else torch.zeros_like(w)
    second = {"magnitude": torch.ones_like(w), "lm": torch.zeros_like(w)}.get(criterion, d)
    return first + 0.5 * second * w**2


def _prunable(model: nn.Module) -> list[str]:
    """Matrices that multiply inputs, by their first names, one by one; not those that embed as well."""
    keys = {
        nn.Linear: ["weight"],
        nn.modules.conv._ConvNd: ["weight"],
        nn.MultiheadAttention: ["in_proj_weight"],
        nn.LSTM: ["weight_ih_l0", "weight_hh_l0"],
    }
    weights = [
        m._parameters[key]
        for m in model.modules()
        for kind, its_keys in keys.items()
        if isinstance(m, kind)
        for key in its_keys
        if key in m._parameters
    ]
    embeddings = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    return [
        name
        for name, p in model.named_parameters()
        if any(p is w for w in weights) and not any(p is e for e in embeddings)
    ]


def _prune(
    network: Network,
    names: list[str],
    criterion: str,
    lam: float,
    levels: list[float],
    first: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None,
) -> list[SimpleNamespace]:
    """Prune a copy by sorting one list of every weight that is left, at each level.

    ``first`` may hold the statistics of the network as it is, to save time.
    """
    model, x, y = network.model, network.x, network.y
    model = copy.deepcopy(model)
    parameters = {name: model.get_parameter(name).data for name in names}
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in parameters.items()}
    total = sum(p.numel() for p in parameters.values())
    steps = []
    for level in levels:
        gradient, diagonal = first or _statistics(model, x, y)
        first = None
        before, ranked = _loss(model, x, y), []
        for position, (name, w) in enumerate(parameters.items()):
            change = _change(criterion, w, gradient[name], diagonal[name])
            saliency = change.abs() + 0.5 * lam * w**2
            ranked += [
                (saliency.flatten()[i].item(), position, i, name, change.flatten()[i].item())
                for i in range(w.numel())
                if masks[name].flatten()[i]
            ]
        count = round(level * total) - sum(int((~m).sum()) for m in masks.values())
        going = sorted(ranked)[:count]
        for _, _, i, name, _ in going:
            masks[name].view(-1)[i] = False
            parameters[name].view(-1)[i] = 0.0
        steps.append(
            SimpleNamespace(
                masks={name: mask.clone() for name, mask in masks.items()},
                predicted_delta_loss=sum(item[4] for item in going),
                delta_loss=_loss(model, x, y) - before,
            )
        )
    return steps


@pytest.fixture(scope="session")
def naive() -> SimpleNamespace:
    """The naive twins."""
    return SimpleNamespace(statistics=_statistics, prune=_prune, prunable=_prunable, loss=_loss)


@pytest.fixture
def adaptive_plugins() -> Iterator[None]:
    """The components of ``adaptive``, for this test alone."""
    default_manager.cache_clear()
    default_manager().register(adaptive.plugin)
    yield
    default_manager.cache_clear()
