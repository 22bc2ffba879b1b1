"""Products with the GGN, the Hessian and the empirical Fisher, without forming a matrix."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import CheckpointError

from prunekit import distributed
from prunekit.errors import DataError, SpecError
from prunekit.losses.base import Loss
from prunekit.masks.weights import FlatIndex
from prunekit.network.call import Batch, Inputs, call, count, ordinary, pieces, rows, unpack
from prunekit.network.devices import device_errors
from prunekit.network.ordinary import ordinary_tensors
from prunekit.network.restore import differentiable, evaluating, refuse_batch_statistics, taking_turns
from prunekit.statistics.hessian import refuse_wrong_second_derivatives
from prunekit.statistics.kept import KeptGraphs, Piece
from prunekit.statistics.missing import missing_derivatives_named
from prunekit.statistics.problem import ForwardPass, Problem, forward
from prunekit.statistics.verification import in_part, input_shapes, refuse_cut, weigh_once

Batches: TypeAlias = Iterable[Batch]

Product: TypeAlias = tuple[dict[str, Tensor], float]
"""By parameter, and the normaliser."""

Push: TypeAlias = Callable[[Problem, Inputs, Tensor, Mapping[str, Tensor]], tuple[ForwardPass, Tensor]]
"""A forward pass, and ``J vector``."""

_KEPT = 3  # a graph that is differentiated twice, or carries tangents, keeps about so many forward passes


class Operator:
    """A symmetric matrix over some parameters, averaged like the loss, known by its products.

    ``op @ vector`` takes and returns ``{parameter name: tensor}``, or one flat vector over all parameters, in their
    order, as a tensor or an array; with :attr:`shape`, :attr:`dtype` and :meth:`matvec`, scipy's solvers take the
    operator as it is (``scipy.sparse.linalg.eigsh(op, k=5)``). Every product reads the data once and
    leaves the model as it was found: its mode, buffers, ``.grad``, flags and random state. Many products in a row are
    faster inside :meth:`steady`.

    * ``ggn``: JᵀHJ, J the Jacobian of the outputs, H the loss's Hessian in them (Schraudolph, 2002,
      section 3). Cost: a forward pass with tangents and a backward pass.
    * ``hessian``: ∂²L/∂θ² (Pearlmutter, 1994). Cost: a gradient with its graph, and its gradient.
    * ``empirical_fisher``: Σ g gᵀ over the gradients g of the loss terms, over the loss's normaliser.

    Args:
        model: Read at every product; the operator follows its weights.
        batches: Returns the examples again for every product; with several processes, each has its own.
        kind: Which matrix.
        loss: Its normaliser is summed over the batches.
        parameters: Name to parameter.
        memory: Bytes for activations; larger batches are split.
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
        if kind not in _KINDS:
            raise SpecError(f"operator {kind!r}: unknown; there are {', '.join(_KINDS)}")
        self.kind = kind
        self._batches = batches
        self._examined = False
        self._push: Push = self._compared
        self._cut = False  # whether batches have been cut, and found to bear it
        self._kept: KeptGraphs | None = None  # inside steady
        self._problem = Problem(model, dict(parameters), loss, Generator(), memory)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shape of a vector's tensors, by parameter."""
        return {name: p.shape for name, p in self._problem.parameters.items()}

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix: the number of weights, twice."""
        size = sum(shape.numel() for shape in self.shapes.values())
        return size, size

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type (numpy's) of a product of flat arrays."""
        dtypes = map(self._problem.dtype, self._problem.parameters.values())
        widest = functools.reduce(torch.promote_types, dtypes, torch.float32)
        return np.dtype(str(widest).removeprefix("torch."))

    def matvec(self, vector: np.ndarray) -> np.ndarray:
        """Multiply a flat array, as scipy's solvers do; also ``[weights, 1]``."""
        product = self @ np.reshape(vector, -1)
        return np.reshape(product, np.shape(vector))

    rmatvec = matvec  # it is symmetric

    @overload
    def __matmul__(self, vector: Mapping[str, object]) -> dict[str, Tensor]: ...

    @overload
    def __matmul__(self, vector: Tensor) -> Tensor: ...

    @overload
    def __matmul__(self, vector: np.ndarray) -> np.ndarray: ...

    @ordinary_tensors()
    def __matmul__(self, vector: object) -> dict[str, Tensor] | Tensor | np.ndarray:
        """Multiply.

        Args:
            vector: ``{parameter name: tensor}``, each in its parameter's shape; or a tensor or an array
                ``[weights]`` or ``[weights, vectors]``, all parameters flattened one after another in the order of
                :attr:`shapes`. Taken to the parameters' dtype and device.

        Returns:
            The same kind, in float32 at least.

        Raises:
            SpecError: If names or shapes are not the operator's.
            DataError: If there are no examples.
        """
        if isinstance(vector, np.ndarray):
            product = self._flat_product(_as_tensor(vector))
            return product.numpy().astype(self.dtype, copy=False)
        if isinstance(vector, Tensor):
            return self._flat_product(vector)
        if isinstance(vector, Mapping):
            return self._product(vector)
        raise SpecError(f"vector: {type(vector).__name__}; accepted is {self._accepted()}")

    def _flat_product(self, vector: Tensor) -> Tensor:
        size = self.shape[0]
        if vector.ndim not in (1, 2) or len(vector) != size:
            raise SpecError(f"vector: it has shape {tuple(vector.shape)}; accepted is {self._accepted()}")
        if vector.ndim == 2:
            return torch.stack([self._flat_product(column) for column in vector.unbind(1)], 1)
        index = FlatIndex(self.shapes)
        return index.flat(self._product(index.split(vector.contiguous()))).to(vector.device)

    def _accepted(self) -> str:
        size, names = self.shape[0], list(self.shapes)
        some = ", ".join(f"{name!r}: tensor {tuple(self.shapes[name])}" for name in names[:2])
        return (
            f"a mapping {{{some}{', …' if len(names) > 2 else ''}}}, or a tensor or an array of shape ({size},) or "
            f"({size}, vectors), the parameters flattened in that order"
        )

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Make many products in a row faster: setting up and restoring the model is done once for all of them.

        For the Hessian, the graph of the gradients is kept from product to product, of as many examples as fit in half of
        ``memory``; there a product costs little more than half. Products are the same, bit for bit. The model must not
        change inside. Examples may, as far as torch can tell; nothing is kept of those that are read again for every
        product. Afterwards nothing is kept.

        Examples:
            >>> import prunekit as pk
            >>> hessian = pk.operator(nn.Linear(2, 1), [(torch.ones(1, 2), torch.ones(1, 1))], "hessian", "mse")
            >>> with hessian.steady():
            ...     (hessian @ torch.tensor([1.0, 0.0]), hessian @ torch.tensor([0.0, 3.0]))
            (tensor([2., 2.]), tensor([6., 6.]))
        """
        if self._kept is not None:
            yield
            return
        with self._ready():
            self._kept = KeptGraphs(self._problem.model, self._problem.memory // 2)
            try:
                yield
            finally:
                self._kept = None

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """The model as a product wants it."""
        problem = self._problem
        with taking_turns():
            if self._kept is not None:
                yield
                return
            with evaluating(problem.model, tuple(problem.parameters)), differentiable():
                yield

    @distributed.together()
    @device_errors()
    def _product(self, vector: Mapping[str, object]) -> dict[str, Tensor]:
        problem = self._problem
        vector = self._checked(vector)
        refuse_batch_statistics(problem.model)
        total, normaliser = _Sum(problem), 0.0
        with self._ready():
            if self._kept is not None:
                self._kept.check_weights()
            for place, batch in enumerate(self._batches()):
                inputs, targets = unpack(batch)
                if count(inputs):
                    with missing_derivatives_named(problem, inputs):
                        normaliser += self._add(place, inputs, targets, vector, total)
        (normaliser,) = distributed.sums(normaliser)
        if normaliser == 0:
            raise DataError("no example counts for the loss; the batches are empty, or all targets ignored")
        return {name: value / normaliser for name, value in distributed.total(total.whole()).items()}

    def _add(
        self, place: int, inputs: Inputs, targets: Tensor, vector: Mapping[str, Tensor], total: _Sum
    ) -> float:
        """Add the product of a batch, in slices that fit the memory; return its normaliser."""
        problem, examples, normaliser = self._problem, count(inputs), 0.0
        if self.kind == "hessian" and not self._examined:
            refuse_wrong_second_derivatives(problem, inputs, targets)
            self._examined = True
        layout = weigh_once(problem, input_shapes(inputs), inputs, targets)
        size = max(1, problem.memory // (_KEPT * layout.bytes_per_example))
        if size < examples and not self._cut:
            with in_part(layout, examples, size):
                first = call(problem.model, rows(inputs, 0, size)).detach()
            refuse_cut(problem, inputs, first)
            self._cut = True
        held = None if self._kept is None else self._kept.batch(place, (inputs, targets))
        for number, (some, their_targets) in enumerate(pieces(inputs, targets, size)):
            with in_part(layout, examples, count(some)):
                if self.kind == "hessian":
                    piece = None if held is None else held.get(number)
                    if piece is None:
                        piece = _differentiated(problem, some, their_targets)
                        if held is not None and self._fits(count(some) * layout.bytes_per_example):
                            held[number] = piece
                    products, weight = piece.multiply(vector), piece.normaliser
                    del piece  # one that is not kept is gone before the next is made
                else:
                    products, weight = self._multiplied(some, their_targets, vector)
            normaliser += weight
            total.add(products)
        return normaliser

    def _fits(self, activations: int) -> bool:
        """Whether a graph may be kept: it holds about what two forward passes save, and the gradients."""
        gradients = sum(p.nbytes for p in self._problem.parameters.values())
        return self._kept is not None and self._kept.fits(activations + gradients)

    def _compared(
        self, problem: Problem, inputs: Inputs, targets: Tensor, vector: Mapping[str, Tensor]
    ) -> tuple[ForwardPass, Tensor]:
        """Torch's forward derivatives, of which some are wrong, held once against backward ones."""
        batch, change = _pushed(problem, inputs, targets, vector)
        self._push = _pushed if _adjoint(batch, change, vector) else pushed_twice_back
        return (batch, change) if self._push is _pushed else self._push(problem, inputs, targets, vector)

    def _multiplied(self, inputs: Inputs, targets: Tensor, vector: Mapping[str, Tensor]) -> Product:
        product = _PRODUCTS[self.kind]
        try:
            return product(self._problem, inputs, targets, vector, self._push)
        except CheckpointError:  # what is computed again on the way back has no tangents
            if self._push is pushed_twice_back:
                raise
            self._push = pushed_twice_back
            return product(self._problem, inputs, targets, vector, self._push)

    def _checked(self, vector: Mapping[str, object]) -> dict[str, Tensor]:
        parameters = self._problem.parameters
        problems = [f"vector: {name!r} is missing" for name in parameters if name not in vector]
        problems += [
            f"vector: the operator has no parameter {name!r}" for name in vector if name not in parameters
        ]
        given = {name: vector[name] for name in parameters if name in vector}
        problems += [
            f"vector: {name!r} is {type(value).__name__}, not a tensor or an array"
            for name, value in given.items()
            if not isinstance(value, Tensor | np.ndarray)
        ]
        problems += [
            f"vector: {name!r} has shape {tuple(value.shape)}, the parameter {tuple(parameters[name].shape)}"
            for name, value in given.items()
            if isinstance(value, Tensor | np.ndarray) and tuple(value.shape) != tuple(parameters[name].shape)
        ]
        if problems:
            raise SpecError(problems)
        return {name: ordinary(_as_tensor(given[name]).detach()).to(p) for name, p in parameters.items()}


def _as_tensor(value: object) -> Tensor:
    """An array as a tensor, whatever the process's default device, its type and its order in memory."""
    return value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))


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
        return pushed_twice_back(problem, inputs, targets, vector)


def _adjoint(batch: ForwardPass, change: Tensor, vector: Mapping[str, Tensor]) -> bool:
    """Whether ``⟨u, Jv⟩ = ⟨Jᵀu, v⟩`` to half the digits, for some u, given ``Jv``."""
    generator = Generator(device="cpu").manual_seed(0)
    u = torch.randn(change.shape, generator=generator, dtype=torch.float64, device="cpu").to(change)
    parameters = batch.problem.parameters
    gradients = torch.autograd.grad(
        batch.outputs, list(parameters.values()), u, retain_graph=True, allow_unused=True
    )
    returned = [g.to_dense() * vector[n] for n, g in zip(parameters, gradients, strict=True) if g is not None]
    both = [u * change, *(-product for product in returned)]
    off = torch.stack([product.double().sum() for product in both]).sum().abs()
    size = torch.stack([product.double().abs().sum() for product in both]).sum()
    return bool(off <= torch.finfo(change.dtype).eps ** 0.5 * size) or not bool(size.isfinite())


def pushed_twice_back(
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


class _Sum:
    """Sums by parameter, in float32 at least; of what is added, nothing is changed, since it may be somebody's own."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._sums: dict[str, Tensor] = {}
        self._own: set[str] = set()

    def add(self, products: Mapping[str, Tensor]) -> None:
        """Add some of them."""
        for name, value in products.items():
            if name in self._own:
                self._sums[name].add_(value)
            elif name in self._sums:
                self._sums[name] = self._sums[name] + value
                self._own.add(name)
            else:  # of a single slice this is all, and no sums of zeros are formed
                self._sums[name] = value.to(self._problem.dtype(self._problem.parameters[name]))

    def whole(self) -> dict[str, Tensor]:
        """All of them, zeros where nothing has been added."""
        return {
            name: self._sums[name]
            if name in self._sums
            else torch.zeros(p.shape, dtype=self._problem.dtype(p), device=p.device)
            for name, p in self._problem.parameters.items()
        }


def _differentiated(problem: Problem, inputs: Inputs, targets: Tensor) -> Piece:
    """A slice's gradients with their graph, which can be multiplied by again and again."""
    batch, _ = forward(problem, inputs, targets, capture=False)
    return Piece(batch.hessian_products(), batch.normaliser)


def _ggn(
    problem: Problem, inputs: Inputs, targets: Tensor, vector: Mapping[str, Tensor], push: Push
) -> Product:
    batch, change = push(problem, inputs, targets, vector)
    leaf = batch.outputs.detach().requires_grad_()
    (slope,) = torch.autograd.grad(problem.loss.total(leaf, targets), leaf, create_graph=True)
    if not slope.requires_grad:  # a loss that is linear in the outputs
        return {}, batch.normaliser
    (bent,) = torch.autograd.grad(slope, leaf, change)
    return _pulled(batch, bent), batch.normaliser


def _fisher(
    problem: Problem, inputs: Inputs, targets: Tensor, vector: Mapping[str, Tensor], push: Push
) -> Product:
    batch, change = push(problem, inputs, targets, vector)
    outputs = batch.outputs.detach()
    back = torch.zeros_like(outputs)
    for column in problem.loss.term_gradients(outputs, targets):
        along = (column * change).reshape(len(column), -1).sum(1)
        back += column * along.view(-1, *(1,) * (column.ndim - 1))
    return _pulled(batch, back), batch.normaliser


_PRODUCTS: dict[str, Callable[[Problem, Inputs, Tensor, Mapping[str, Tensor], Push], Product]] = {
    "ggn": _ggn,
    "empirical_fisher": _fisher,
}
_KINDS = ("ggn", "hessian", "empirical_fisher")
