"""What a statistic is computed from: a model, a loss, some parameters, and one batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

from prunekit.errors import UnsupportedError
from prunekit.lending import Lent
from prunekit.masks.axes import layers_of
from prunekit.masks.weights import FlatIndex, Layer
from prunekit.network.call import Inputs, call
from prunekit.network.hooks import Unhooked, note_hooks
from prunekit.network.noise import refusing_noise
from prunekit.statistics.capture import Capture, Use

if TYPE_CHECKING:
    from prunekit.losses.base import Loss


@dataclass(frozen=True)
class Problem:
    """Everything that stays the same during one estimation.

    Attributes:
        model: In eval mode, with ``requires_grad`` set on just the parameters asked for.
        parameters: Name to parameter, in ``named_parameters()`` order.
        loss: The task loss.
        generator: CPU generator for estimators that draw.
        memory: Bytes for activations and intermediate products.
        masks: Weights still kept (``True``), for statistics that cover only those; ``None`` for all.
    """

    model: nn.Module
    parameters: Mapping[str, Tensor]
    loss: Loss
    generator: Generator
    memory: int
    masks: Mapping[str, Tensor] | None = None

    def layers(self) -> list[Layer]:
        """The parameters as layers: where each stands among all weights, and which axis its inputs are on."""
        return layers_of(self.model, self.parameters)

    def kept(self) -> Tensor:
        """Flat indices of the kept weights, parameters one after another."""
        index = FlatIndex.of(self.parameters)
        if self.masks is None:
            return torch.arange(index.total, device=next(iter(self.parameters.values())).device)
        return index.flat(self.masks).nonzero().squeeze(1)

    def dtype(self, parameter: Tensor) -> torch.dtype:
        """In which sums are accumulated: float32 at least."""
        return torch.promote_types(parameter.dtype, torch.float32)

    def zeros(self) -> dict[str, Tensor]:
        """An accumulator per parameter."""
        return {
            name: torch.zeros(p.shape, dtype=self.dtype(p), device=p.device)
            for name, p in self.parameters.items()
        }


@dataclass
class ForwardPass:
    """One batch after the network has run, with its graph alive.

    Attributes:
        problem: What the batch belongs to.
        inputs: The batch's inputs.
        targets: The batch's targets.
        outputs: What the model returned, in the graph.
        total: Sum of the loss terms, in the graph.
        normaliser: What the sum of the terms is divided by.
        uses: Parameter to its uses, for parameters whose uses are known to be all and example-first.
        others: Parameters in use that need the general, per-example fallback.
        seen: Parameter to its uses, for those whose uses are known to be all, whatever the order of the examples; for
            estimators that are not ``by_example``.
        unseen: Parameters in use that are also used in some other way.
        bytes_per_example: Memory that an example's activations take, about.
        needed_again: Whether another estimator still needs the graph, so that it must be retained.
    """

    problem: Problem
    inputs: Inputs
    targets: Tensor
    outputs: Tensor
    total: Tensor
    normaliser: float
    uses: Mapping[str, Sequence[Use]] = field(default_factory=dict)
    others: Sequence[str] = ()
    seen: Mapping[str, Sequence[Use]] = field(default_factory=dict)
    unseen: Sequence[str] = ()
    bytes_per_example: int = 0
    needed_again: bool = True

    def backward(self, column: Tensor) -> dict[str, list[Tensor]]:
        """Send a vector back from the outputs; return what arrives at each use of each parameter."""
        edges = dict.fromkeys(use.edge for uses in self.uses.values() for use in uses)
        if not edges:
            return {}
        # A scalar, not the outputs with a vector: for the latter torch first imports its symbolic shapes,
        # and with them sympy, which takes half a second of every process.
        scalar = self.outputs.reshape(-1).dot(column.reshape(-1))
        arrived = torch.autograd.grad(scalar, list(edges), retain_graph=True, allow_unused=True)
        gradients = dict(zip(edges, arrived, strict=True))

        def at(use: Use) -> Tensor:
            g = gradients[use.edge]
            return self.outputs.new_zeros(use.output_shape) if g is None else use.returned(g)

        return {name: [at(use) for use in uses] for name, uses in self.uses.items()}

    def hessian_products(
        self, names: Collection[str] | None = None
    ) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
        """Products with the Hessian of the batch's total loss in the parameters; zero where it has none.

        With ``names``, the block of the Hessian in those parameters.
        """
        parameters = {n: p for n, p in self.problem.parameters.items() if names is None or n in names}
        gradients = torch.autograd.grad(
            self.total, list(parameters.values()), create_graph=True, allow_unused=True
        )
        for name, g in zip(parameters, gradients, strict=True):
            if g is not None and g.layout != torch.strided:
                raise UnsupportedError(
                    f"second derivatives: {name} has a sparse gradient, which torch cannot differentiate again"
                )
        curved = {
            n: g for n, g in zip(parameters, gradients, strict=True) if g is not None and g.requires_grad
        }

        def product(vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
            if not curved:
                return {name: torch.zeros_like(p) for name, p in parameters.items()}
            products = torch.autograd.grad(
                list(curved.values()),
                list(parameters.values()),
                [vector[name].to(g) for name, g in curved.items()],
                retain_graph=True,
                allow_unused=True,
            )
            return {
                name: torch.zeros_like(p) if h is None else h.to_dense()
                for (name, p), h in zip(parameters.items(), products, strict=True)
            }

        return product


def forward(
    problem: Problem, inputs: Inputs, targets: Tensor, capture: bool
) -> tuple[ForwardPass, list[Use]]:
    """Run the network once.

    Raises:
        UnsupportedError: If it draws random numbers, in eval mode; naming the modules.
    """
    uses: list[Use] = []
    mode = Capture(problem.parameters) if capture else Unhooked()
    with refusing_noise(problem.model, inputs), mode:
        outputs = call(problem.model, inputs)
    note_hooks(problem.model, mode)
    if isinstance(mode, Capture):
        uses = mode.uses
    if not outputs.requires_grad:  # they depend on no parameter that is asked for
        outputs = outputs.detach().requires_grad_()
    lent = Lent({"the outputs": outputs, "the targets": targets})
    total = problem.loss.total(outputs, targets)
    normaliser = problem.loss.normaliser(outputs, targets)
    lent.check(f"loss {problem.loss.name!r}")
    return ForwardPass(problem, inputs, targets, outputs, total, normaliser), uses
