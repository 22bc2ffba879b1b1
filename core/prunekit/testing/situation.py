"""What components meet: a small network with some examples, before the first step and after one, and odd networks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import torch
from torch import Tensor, nn

from prunekit.losses.base import Loss
from prunekit.masks.apply import apply_masks
from prunekit.masks.axes import layers_of
from prunekit.masks.prunable import named_parameters, prunable_parameters
from prunekit.masks.weights import Layer
from prunekit.plugins.build import component, estimators
from prunekit.plugins.host import PluginManager
from prunekit.pruning.proposal import Context
from prunekit.pruning.scheduler import Scheduler
from prunekit.pruning.selector import Selector
from prunekit.seeds import generator
from prunekit.statistics.estimate import estimate
from prunekit.statistics.request import Detailed, Estimates, Request
from prunekit.testing.guard import Injected

DTYPES = (torch.float32, torch.float64)
SPARSITIES = (0.0, 0.4)
LAMBDAS = (0.0, 1e-3)
EXAMPLES, CLASSES = 12, 4

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Situation:
    """What a criterion meets at one step.

    Attributes:
        weights: Copies of the prunable weights, exactly zero where ``masks`` is False.
        statistics: What the criterion requires, computed by the engine at these weights.
        masks: What is kept now.
        proposed: Masks after the step: some more weights go.
        layers: The prunable tensors.
        lam: λ of the step.
    """

    weights: Mapping[str, Tensor]
    statistics: Estimates
    masks: Mapping[str, Tensor]
    proposed: Mapping[str, Tensor]
    layers: Sequence[Layer]
    lam: float

    def to(self, device: str) -> Situation:
        """A copy on a device."""
        return replace(
            self,
            weights=_copied(self.weights, device),
            statistics=Estimates({r: _copied(tensors, device) for r, tensors in self.statistics.items()}),
            masks=_copied(self.masks, device),
            proposed=_copied(self.proposed, device),
        )

    def context(
        self,
        budget: int,
        selector: Selector,
        statistics: Mapping[Request, Mapping[str, Tensor]] | None = None,
    ) -> Context:
        """The engine's question."""
        available = self.statistics if statistics is None else statistics
        return Context(self.weights, available, self.masks, budget, self.lam, selector, self.layers)

    def mappings(self) -> list[Mapping[str, Tensor]]:
        """All that is lent."""
        return [self.weights, *self.statistics.values(), self.masks, self.proposed]

    def lent(self) -> list[Tensor]:
        """Every tensor that is lent."""
        return [t for mapping in self.mappings() for t in mapping.values()]

    @property
    def gone(self) -> int:
        """Weights that are pruned now."""
        return sum(int((~mask).sum()) for mask in self.masks.values())

    def budgets(self) -> list[int]:
        """Nothing more, one more, half of what is left, all but one."""
        total = sum(layer.size for layer in self.layers)
        return sorted({self.gone, self.gone + 1, (self.gone + total) // 2, total - 1})


def _copied(tensors: Mapping[str, Tensor], device: str) -> Mapping[str, Tensor]:
    if isinstance(tensors, Detailed):
        return tensors.map(lambda t: t.to(device, copy=True))
    return {name: t.to(device, copy=True) for name, t in tensors.items()}


def situation(
    requires: frozenset[Request],
    manager: PluginManager,
    dtype: torch.dtype = torch.float64,
    sparsity: float = 0.0,
    lam: float = 0.0,
    case: str = "usual",
) -> Situation:
    """Prune a network at random, and compute there what is required; a copy.

    Args:
        requires: Statistics.
        manager: Where they are found, and the loss.
        dtype: Of the network.
        sparsity: What is pruned before.
        lam: λ of the step.
        case: ``usual``, or one of :data:`ODD`.
    """
    return replace(_computed(requires, manager, dtype, sparsity, case), lam=lam).to("cpu")


@lru_cache(maxsize=128)
def _computed(
    requires: frozenset[Request], manager: PluginManager, dtype: torch.dtype, sparsity: float, case: str
) -> Situation:
    model = network(dtype) if case == "usual" else odd_network(case, dtype)
    data = batch(dtype) if case == "usual" else odd_batch(dtype)
    loss: Loss = component("loss", "cross_entropy", manager)
    # Those without elements are not prunable, but may be asked for by name.
    parameters = named_parameters(model, ["*.weight"]) if case == ODD[0] else prunable_parameters(model)
    draw = torch.Generator().manual_seed(2)
    order = {k: torch.rand(p.shape, generator=draw, dtype=torch.float64) for k, p in parameters.items()}
    masks = {k: r >= sparsity for k, r in order.items()}
    proposed = {k: r >= sparsity + 0.2 for k, r in order.items()}
    if case == "a layer that is gone":
        masks["middle.weight"], proposed["middle.weight"] = (
            torch.zeros_like(masks["middle.weight"]) for _ in range(2)
        )
    apply_masks(model, masks)
    estimated = estimate(
        model,
        [data],
        estimators(requires, manager),
        loss,
        parameters,
        generator(0, "statistics", 0),
        masks=masks,
    )
    weights = {name: p.detach().clone() for name, p in parameters.items()}
    return Situation(weights, estimated.statistics, masks, proposed, layers_of(model, parameters), 0.0)


@cache
def _network(dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(4, 3, 2),
            nn.BatchNorm2d(3),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(12, 8, bias=False),
            nn.ReLU(),
            nn.Linear(8, CLASSES),
        )
    return model.to(dtype)


def network(dtype: torch.dtype) -> nn.Module:
    """A small network with a convolution, a norm and two linear layers, in training mode; 176 prunable weights."""
    import copy

    return copy.deepcopy(_network(dtype))


def batch(dtype: torch.dtype) -> Batch:
    """Twelve examples for :func:`network`."""
    source = torch.Generator().manual_seed(1)
    inputs = torch.randn(EXAMPLES, 4, 3, 3, generator=source, dtype=torch.float64)
    return inputs.to(dtype), torch.randint(CLASSES, (EXAMPLES,), generator=source)


ODD = (
    "a layer without weights",
    "a layer of one weight",
    "weights that are all equal",
    "a layer that is all zero",
    "a layer that is gone",
)
"""Networks at the edges of what there is."""


class Odd(nn.Module):
    """Three linear layers; the middle one may be odd, and one beside it may have no weights at all."""

    def __init__(self, width: int, empty: bool) -> None:
        super().__init__()
        self.first = nn.Linear(4, width)
        self.middle = nn.Linear(width, width, bias=False)
        if empty:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch: initialising what has no elements does nothing
                self.empty = nn.Linear(width, 0, bias=False)
        self.last = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.middle(self.first(x).tanh())
        if hasattr(self, "empty"):
            x = torch.cat([x, self.empty(x)], 1)
        outputs: Tensor = self.last(x)
        return outputs


def odd_network(case: str, dtype: torch.dtype) -> nn.Module:
    """A network of :data:`ODD`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Odd(1 if case == "a layer of one weight" else 4, case == "a layer without weights")
    with torch.no_grad():
        if case == "weights that are all equal":
            for parameter in model.parameters():
                parameter.fill_(0.25)
        elif case == "a layer that is all zero":
            model.middle.weight.zero_()
    return model.to(dtype)


def odd_batch(dtype: torch.dtype) -> Batch:
    """Twelve examples for :func:`odd_network`."""
    source = torch.Generator().manual_seed(1)
    inputs = torch.randn(EXAMPLES, 4, generator=source, dtype=torch.float64)
    return inputs.to(dtype), torch.randint(CLASSES, (EXAMPLES,), generator=source)


class Levels(Scheduler):
    """Fixed levels."""

    name = "levels"

    def __init__(self, *levels: float) -> None:
        super().__init__()
        self._levels = levels

    def levels(self) -> list[float]:
        """Those given."""
        return list(self._levels)


class Failing(Mapping[str, Tensor]):
    """A mapping of tensors that fails after the first, as a device may that runs out of memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._first = next(iter(tensors), None)

    def __getitem__(self, name: str) -> Tensor:
        if name != self._first:
            raise Injected
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __getattr__(self, name: str) -> object:
        attribute: object = getattr(self._tensors, name)  # what a detailed statistic has beside its tensors
        return attribute


class Watched(Mapping[Request, Mapping[str, Tensor]]):
    """Statistics that remember which of them were asked for."""

    def __init__(self, statistics: Estimates) -> None:
        self._statistics = statistics
        self.read: set[Request] = set()

    def __getitem__(self, request: Request) -> Mapping[str, Tensor]:
        statistic: Mapping[str, Tensor] = self._statistics[request]
        self.read |= {key for key, value in self._statistics.items() if value is statistic}
        return statistic

    def __iter__(self) -> Iterator[Request]:
        return iter(self._statistics)

    def __len__(self) -> int:
        return len(self._statistics)
