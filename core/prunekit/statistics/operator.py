"""Products with the GGN, the Hessian and the empirical Fisher, without forming a matrix."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import CheckpointError

from prunekit import distributed
from prunekit.errors import DataError, SpecError
from prunekit.losses.base import Loss
from prunekit.network.call import Batch, Inputs, call, count, ordinary, pieces, unpack
from prunekit.network.devices import device_errors
from prunekit.network.ordinary import ordinary_tensors
from prunekit.network.restore import differentiable, evaluating, refuse_batch_statistics
from prunekit.statistics.hessian import refuse_wrong_second_derivatives
from prunekit.statistics.problem import ForwardPass, Problem, forward
from prunekit.statistics.verification import input_shapes, weigh_once

Batches: TypeAlias = Iterable[Batch]

_KEPT = 3  # a graph that is differentiated twice, or carries tangents, keeps about so many forward passes


class Operator:
    """A symmetric matrix over some parameters, averaged like the loss, known by its products.

    ``op @ vector`` takes and returns ``{parameter name: tensor}``. Every product reads the data once and
    leaves the model as it was found: its mode, buffers, ``.grad``, flags and random state.

    * ``ggn``: JᵀHJ, J the Jacobian of the outputs, H the loss's Hessian in them (Schraudolph, 2002,
      section 3). Cost: a forward pass with tangents and a backward pass.
    * ``hessian``: ∂²L/∂θ² (Pearlmutter, 1994). Cost: a gradient with its graph, and its gradient.
    * ``empirical_fisher``: Σ g gᵀ over the gradients g of the loss terms, over the loss's normaliser.

    Args:
        model: Read at every product; the operator follows its weights.
        batches: Returns the examples anew for every product; of several processes, each its own.
        kind: Which matrix.
        loss: Its normaliser is summed over the batches.
        parameters: Name to parameter.
        memory: Bytes for activations; larger batches are cut.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[], Batches],
        kind: str,
        loss: Loss,
        parameters: Mapping[str, Tensor],
        memory: int,
    ) -> None:
        if kind not in _PRODUCTS:
            raise SpecError(f"operator {kind!r}: unknown; there are {', '.join(_PRODUCTS)}")
        self.kind = kind
        self._batches = batches
        self._examined = False
        self._problem = Problem(model, dict(parameters), loss, Generator(), memory)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shape of a vector's tensors, by parameter."""
        return {name: p.shape for name, p in self._problem.parameters.items()}

    @distributed.together()
    @device_errors()
    @ordinary_tensors()
    def __matmul__(self, vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply.

        Args:
            vector: One tensor per parameter, in its shape; taken to its dtype and device.

        Returns:
            Tensors of the same shapes, in float32 at least.

        Raises:
            SpecError: If names or shapes are not the operator's.
            DataError: If there are no examples.
        """
        problem = self._problem
        vector = self._checked(vector)
        product = _PRODUCTS[self.kind]
        refuse_batch_statistics(problem.model)
        total, normaliser = problem.zeros(), 0.0
        with (
            evaluating(problem.model, tuple(problem.parameters)),
            differentiable(),
        ):
            for batch in self._batches():
                batch_inputs, batch_targets = unpack(batch)
                if count(batch_inputs) == 0:
                    continue
                if self.kind == "hessian" and not self._examined:
                    refuse_wrong_second_derivatives(problem, batch_inputs, batch_targets)
                    self._examined = True
                layout = weigh_once(problem, input_shapes(batch_inputs), batch_inputs, batch_targets)
                size = max(1, problem.memory // (_KEPT * layout.bytes_per_example))
                for inputs, targets in pieces(batch_inputs, batch_targets, size):
                    products, weight = product(problem, inputs, targets, vector)
                    normaliser += weight
                    for name, value in products.items():
                        total[name] += value
        (normaliser,) = distributed.sums(normaliser)
        if normaliser == 0:
            raise DataError("no example counts for the loss; the batches are empty, or all targets ignored")
        return {name: value / normaliser for name, value in distributed.total(total).items()}

    def _checked(self, vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parameters = self._problem.parameters
        problems = [f"vector: {name!r} is missing" for name in parameters if name not in vector]
        problems += [
            f"vector: the operator has no parameter {name!r}" for name in vector if name not in parameters
        ]
        problems += [
            f"vector: {name!r} has shape {tuple(vector[name].shape)}, the parameter {tuple(p.shape)}"
            for name, p in parameters.items()
            if name in vector and vector[name].shape != p.shape
        ]
        if problems:
            raise SpecError(problems)
        return {name: ordinary(vector[name].detach()).to(p) for name, p in parameters.items()}


Product: TypeAlias = tuple[dict[str, Tensor], float]


def _hessian(problem: Problem, inputs: Inputs, targets: Tensor, vector: Mapping[str, Tensor]) -> Product:
    batch, _ = forward(problem, inputs, targets, capture=False)
    return batch.hessian_products()(vector), batch.normaliser


def _ggn(problem: Problem, inputs: Inputs, targets: Tensor, vector: Mapping[str, Tensor]) -> Product:
    def bent(outputs: Tensor, change: Tensor) -> Tensor | None:
        leaf = outputs.requires_grad_()
        (slope,) = torch.autograd.grad(problem.loss.total(leaf, targets), leaf, create_graph=True)
        if not slope.requires_grad:  # a loss that is linear in the outputs
            return None
        return torch.autograd.grad(slope, leaf, change)[0]

    return _there_and_back(problem, inputs, targets, vector, bent)


def _fisher(problem: Problem, inputs: Inputs, targets: Tensor, vector: Mapping[str, Tensor]) -> Product:
    def back(outputs: Tensor, change: Tensor) -> Tensor:
        total = torch.zeros_like(outputs)
        for column in problem.loss.term_gradients(outputs, targets):
            along = (column * change).flatten(1).sum(1)
            total += column * along.view(-1, *(1,) * (column.ndim - 1))
        return total

    return _there_and_back(problem, inputs, targets, vector, back)


_PRODUCTS: dict[str, Callable[[Problem, Inputs, Tensor, Mapping[str, Tensor]], Product]] = {
    "ggn": _ggn,
    "hessian": _hessian,
    "empirical_fisher": _fisher,
}


def _there_and_back(
    problem: Problem,
    inputs: Inputs,
    targets: Tensor,
    vector: Mapping[str, Tensor],
    turned: Callable[[Tensor, Tensor], Tensor | None],
) -> Product:
    """``Jᵀ turned(outputs, J vector)``; without ``turned``'s answer nothing."""

    def returned(batch: ForwardPass, change: Tensor) -> Product:
        column = turned(batch.outputs.detach(), change)
        return {} if column is None else _pulled(batch, column), batch.normaliser

    try:
        return returned(*_pushed(problem, inputs, targets, vector))
    except CheckpointError:  # what is computed again on the way back knows nothing of the tangents
        return returned(*_pushed_twice_back(problem, inputs, targets, vector))


def _pulled(batch: ForwardPass, column: Tensor) -> dict[str, Tensor]:
    """``Jᵀ column``."""
    parameters = batch.problem.parameters
    gradients = torch.autograd.grad(batch.outputs, list(parameters.values()), column, allow_unused=True)
    return {n: g.to_dense() for n, g in zip(parameters, gradients, strict=True) if g is not None}


def _pushed(
    problem: Problem, inputs: Inputs, targets: Tensor, vector: Mapping[str, Tensor]
) -> tuple[ForwardPass, Tensor]:
    """A forward pass with its graph, and ``J vector``."""
    try:
        with forward_ad.dual_level(), warnings.catch_warnings():
            # Torch's forward mode is still built with torch.jit, and says so on first use.
            warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
            make: Any = forward_ad.make_dual
            parts: Any = forward_ad.unpack_dual
            dual = {name: make(p, vector[name]) for name, p in problem.parameters.items()}
            outputs, tangent = parts(call(problem.model, inputs, dual))
        if tangent is None:
            tangent = torch.zeros_like(outputs)
        if not outputs.requires_grad:
            outputs = outputs.detach().requires_grad_()
        total = problem.loss.total(outputs, targets)
        batch = ForwardPass(
            problem, inputs, targets, outputs, total, problem.loss.normaliser(outputs, targets)
        )
        return batch, tangent.detach()
    except (NotImplementedError, RuntimeError):  # an operation without a forward derivative
        return _pushed_twice_back(problem, inputs, targets, vector)


def _pushed_twice_back(
    problem: Problem, inputs: Inputs, targets: Tensor, vector: Mapping[str, Tensor]
) -> tuple[ForwardPass, Tensor]:
    """``Jᵀw`` is linear in w, and its derivative along the vector is ``J vector``."""
    batch, _ = forward(problem, inputs, targets, capture=False)
    dummy = torch.zeros_like(batch.outputs, requires_grad=True)
    parameters = problem.parameters
    pulled = torch.autograd.grad(
        batch.outputs, list(parameters.values()), dummy, create_graph=True, allow_unused=True
    )
    used = [
        (g, vector[n]) for n, g in zip(parameters, pulled, strict=True) if g is not None and g.requires_grad
    ]
    if not used:
        return batch, torch.zeros_like(batch.outputs)
    (change,) = torch.autograd.grad(
        [g for g, _ in used], dummy, [v.to(g) for g, v in used], retain_graph=True, allow_unused=True
    )
    return batch, torch.zeros_like(batch.outputs) if change is None else change.detach()
