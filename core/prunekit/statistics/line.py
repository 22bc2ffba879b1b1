"""Derivatives of the loss along a line through the weights: ``t ↦ L(θ + t·Δ)`` at t = 0.

Numbers along one direction need no products with curvature matrices: jets (:mod:`prunekit.statistics.jets`) go through
the network once, forwards, and bring the Taylor coefficients of the outputs, from which those of the loss follow. What
jets have no rule for is differentiated backwards again and again, up to the second order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Generator, Tensor, nn

from prunekit import distributed
from prunekit.errors import DataError, PrunekitError, UnsupportedError
from prunekit.losses.base import Loss
from prunekit.network.call import Batch, Inputs, call, count, few_examples, pieces, rows, unpack
from prunekit.network.restore import differentiable, evaluating, refuse_batch_statistics
from prunekit.statistics.hessian import refuse_wrong_second_derivatives
from prunekit.statistics.jets import Jet, NoJetError, coefficients
from prunekit.statistics.missing import missing_derivatives_named
from prunekit.statistics.operator import pushed_twice_back
from prunekit.statistics.problem import Problem
from prunekit.statistics.verification import in_part, input_shapes, refuse_cut, weigh_once

Direction = Mapping[str, Tensor]
"""Parameter to its part of Δ; what is left out does not move."""

Part = Callable[[Inputs, Tensor, bool], tuple[Tensor, Sequence[Tensor]]]
"""What a slice gives, by jets or backwards: its outputs, and numbers that are summed."""

_BACKWARDS = (
    2  # the highest order that is also taken backwards; of some operations, torch's third ones are wrong
)

_KEPT = 3  # what a pass keeps of a slice, in forward passes, besides its coefficients

_JETS: WeakKeyDictionary[nn.Module, dict[object, str]] = WeakKeyDictionary()
"""By inputs and parameters, why jets do not go through a model, or not rightly; empty where they do."""


@dataclass(frozen=True)
class LineDerivatives:
    """The loss along a line, at its beginning.

    Attributes:
        derivatives: Of ``t ↦ L(θ + t·Δ)``, from order 0, the loss itself.
        ggn: ``ΔᵀGΔ`` with G the generalised Gauss-Newton matrix; the second derivative is ``ΔᵀHΔ``.
    """

    derivatives: tuple[float, ...]
    ggn: float


class Line:
    """Lines through the weights of a model, as they are when it is asked.

    Args:
        model: Left as it was found by every pass.
        loss: Its terms and normalisers are summed, so batch sizes do not matter.
        parameters: Those that may move.
        memory: Bytes for activations; larger batches are cut.
    """

    def __init__(self, model: nn.Module, loss: Loss, parameters: Mapping[str, Tensor], memory: int) -> None:
        self._problem = Problem(model, dict(parameters), loss, Generator(), memory)

    def derivatives(self, batches: Iterable[Batch], direction: Direction, order: int) -> LineDerivatives:
        """Take those up to an order, 1 at least; in eval mode.

        Raises:
            UnsupportedError: If they cannot be had, saying why.
            DataError: If there are no examples.
        """
        problem = self._problem

        def slopes(inputs: Inputs, targets: Tensor, jets: bool) -> tuple[Tensor, Sequence[Tensor]]:
            found, path = _slopes(problem, inputs, targets, direction, order, jets)
            outputs = path[0]
            assert outputs is not None
            bent = _derivatives(problem.loss, [outputs, path[1]], targets, 2)[2]
            return outputs, [*found, bent]

        *derivatives, ggn = self._mean(batches, order, slopes, order + _KEPT)
        return LineDerivatives(tuple(derivatives), ggn)

    def gram(self, batches: Iterable[Batch], directions: Sequence[Direction]) -> list[list[float]]:
        """``Δ_iᵀGΔ_j`` of some directions, by a forward pass each.

        Raises:
            UnsupportedError, DataError: As for :meth:`derivatives`.
        """
        problem, size = self._problem, len(directions)

        def products(inputs: Inputs, targets: Tensor, jets: bool) -> tuple[Tensor, Sequence[Tensor]]:
            outputs = call(problem.model, inputs).detach()
            changes = [_change(problem, inputs, targets, one, jets) for one in directions]
            moved = [torch.zeros_like(outputs) if dz is None else dz for dz in changes]
            bent = _bent(problem.loss, outputs, moved, targets)
            return outputs, [(dz * hz).sum(dtype=torch.float64) for dz in moved for hz in bent]

        if not size:
            return []
        flat = self._mean(batches, 1, products, size + _KEPT)
        return [flat[i * size : (i + 1) * size] for i in range(size)]

    @distributed.together()
    def _mean(self, batches: Iterable[Batch], order: int, part: Part, kept: int) -> list[float]:
        """Sums of what the slices of the batches give, over the loss's normaliser."""
        problem, sums, normaliser = self._problem, list[Tensor](), 0.0
        refuse_batch_statistics(problem.model)
        with evaluating(problem.model, tuple(problem.parameters)), differentiable():
            for batch in batches:
                inputs, targets = unpack(batch)
                if not count(inputs):
                    continue
                with missing_derivatives_named(problem, inputs):
                    why_not = _why_no_jets(problem, inputs, targets)
                    if why_not and order > _BACKWARDS:
                        raise _too_high(order, why_not)
                    if why_not and order == _BACKWARDS:
                        refuse_wrong_second_derivatives(problem, inputs, targets)
                    for some, theirs in _slices(problem, inputs, targets, kept):
                        outputs, values = part(some, theirs, not why_not)
                        normaliser += problem.loss.normaliser(outputs, theirs)
                        found = torch.stack([v.detach().double() for v in values])
                        sums = [found if not sums else sums[0] + found]
        normaliser, *totals = self._shared(normaliser, sums)
        if normaliser == 0:
            raise DataError("no example counts for the loss; the batches are empty, or all targets ignored")
        return [value / normaliser for value in totals]

    @staticmethod
    def _shared(normaliser: float, sums: Sequence[Tensor]) -> tuple[float, ...]:
        """Over all processes; one without examples does not know how many sums there are."""
        own = sums[0].tolist() if sums else []
        length = max(distributed.gather(len(own)))
        return distributed.sums(normaliser, *own, *[0.0] * (length - len(own)))


def _slices(problem: Problem, inputs: Inputs, targets: Tensor, kept: int) -> Iterator[tuple[Inputs, Tensor]]:
    """A batch in slices that fit the memory, if each example takes so many times its activations."""
    examples = count(inputs)
    layout = weigh_once(problem, input_shapes(inputs), inputs, targets)
    size = max(1, problem.memory // (kept * layout.bytes_per_example))
    if size < examples:
        with in_part(layout, examples, size):
            first = call(problem.model, rows(inputs, 0, size)).detach()
        refuse_cut(problem, inputs, first)
    for some, theirs in pieces(inputs, targets, size):
        with in_part(layout, examples, count(some)):
            yield some, theirs


def _along(problem: Problem, inputs: Inputs, direction: Direction, order: int) -> list[Tensor | None]:
    """Taylor coefficients of the outputs, by jets."""
    rest = [None] * (order - 1)
    moving = {
        name: Jet([p.detach(), direction[name].to(p), *rest])
        for name, p in problem.parameters.items()
        if name in direction
    }
    outputs = call(problem.model, inputs, moving)
    return [None if c is None else c.detach() for c in coefficients(outputs, order)]


def _derivatives(loss: Loss, path: Sequence[Tensor | None], targets: Tensor, order: int) -> list[Tensor]:
    """Those of the total loss of outputs that move along a path, from order 0."""
    first = path[0]
    assert first is not None
    with torch.enable_grad():
        t = torch.zeros((), dtype=first.dtype, device=first.device, requires_grad=True)
        place: Tensor = torch.zeros_like(first)
        for coefficient in reversed(path):
            place = place * t if coefficient is None else coefficient.detach() + place * t
        return [value.detach() for value in _repeated(loss.total(place, targets), t, order)]


def _repeated(value: Tensor, t: Tensor, order: int) -> list[Tensor]:
    """A number's derivatives in another, from order 0."""
    found = [value]
    for k in range(1, order + 1):
        if not found[-1].requires_grad:
            found.append(torch.zeros_like(value))
            continue
        (slope,) = torch.autograd.grad(found[-1], t, create_graph=k < order, allow_unused=True)
        found.append(torch.zeros_like(value) if slope is None else slope)
    return found


def _bent(loss: Loss, outputs: Tensor, changes: Sequence[Tensor], targets: Tensor) -> list[Tensor]:
    """The Hessian of the total loss in the outputs, times some changes of them."""
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss.total(leaf, targets), leaf, create_graph=True)
        if not slope.requires_grad:  # a loss that is linear in the outputs
            return [torch.zeros_like(outputs) for _ in changes]
        return [torch.autograd.grad(slope, leaf, change, retain_graph=True)[0] for change in changes]


def _slopes(
    problem: Problem, inputs: Inputs, targets: Tensor, direction: Direction, order: int, jets: bool
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Derivatives of the total loss, and the outputs with at least their first."""
    why_not = ""
    if jets:
        try:
            path = _along(problem, inputs, direction, order)
            return _derivatives(problem.loss, path, targets, order), path
        except (PrunekitError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # an operation that earlier examples did not meet
            why_not = str(error) or type(error).__name__
    if order > _BACKWARDS:
        raise _too_high(order, why_not)
    found, outputs = _backwards(problem, inputs, targets, direction)
    return found[: order + 1], outputs


def _too_high(order: int, why_not: str) -> UnsupportedError:
    return UnsupportedError(
        f"no derivatives of order {order} along a line: forward ones cannot be used ({why_not}), and backward ones "
        f"end at {_BACKWARDS}"
    )


def _change(
    problem: Problem, inputs: Inputs, targets: Tensor, direction: Direction, jets: bool
) -> Tensor | None:
    """``JΔ``; ``None`` where it is zero."""
    if jets:
        try:
            return _along(problem, inputs, direction, 1)[1]
        except NoJetError:  # such as writing a number that moves to a constant's place
            pass
    return pushed_twice_back(problem, inputs, targets, _whole(problem, direction))[1]


def _whole(problem: Problem, direction: Direction) -> dict[str, Tensor]:
    return {
        name: direction[name].to(p) if name in direction else torch.zeros_like(p)
        for name, p in problem.parameters.items()
    }


def _backwards(
    problem: Problem, inputs: Inputs, targets: Tensor, direction: Direction
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Derivatives of the total loss to the second order, and the outputs with their first: by reverse differentiation."""
    vector = _whole(problem, direction)
    batch, change = pushed_twice_back(problem, inputs, targets, vector)
    slopes = torch.autograd.grad(
        batch.total, list(problem.parameters.values()), retain_graph=True, allow_unused=True
    )
    gradient = {n: g.to_dense() for n, g in zip(problem.parameters, slopes, strict=True) if g is not None}
    first, second = (_dot(side, vector, batch.total) for side in (gradient, batch.hessian_products()(vector)))
    return [batch.total.detach(), first, second], [batch.outputs.detach(), change]


def _dot(left: Direction, right: Direction, like: Tensor) -> Tensor:
    products = [(value * right[name]).sum(dtype=torch.float64) for name, value in left.items()]
    return torch.stack(products).sum() if products else torch.zeros_like(like, dtype=torch.float64)


def _why_no_jets(problem: Problem, inputs: Inputs, targets: Tensor) -> str:
    """Why jets are of no use for a model, found once with a few examples along a line of its own; empty if they are."""
    known = _JETS.setdefault(problem.model, {})
    key = input_shapes(inputs), tuple(problem.parameters)
    if key not in known:
        if weigh_once(problem, key[0], inputs, targets).takes_few:
            inputs, targets = few_examples(inputs), few_examples(targets)
        known[key] = _disagreement(problem, inputs, targets)
    return known[key]


def _disagreement(problem: Problem, inputs: Inputs, targets: Tensor) -> str:
    generator = Generator(device="cpu").manual_seed(0)
    direction = {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float32, device="cpu").to(p)
        * (0.3 * p.detach().abs().mean())
        for name, p in problem.parameters.items()
    }
    slopes, (outputs, change) = _backwards(problem, inputs, targets, direction)
    assert outputs is not None
    assert change is not None
    try:
        path = _along(problem, inputs, direction, _BACKWARDS)
        found = _derivatives(problem.loss, path, targets, _BACKWARDS)
    except Exception as error:  # whatever a network does that jets cannot follow
        return str(error) or type(error).__name__
    eps = torch.finfo(outputs.dtype).eps
    pairs = [(float(a), float(b)) for a, b in zip(found, slopes, strict=True)]
    rounding = 200 * eps * max(abs(value) for pair in pairs for value in pair)
    same = all(not abs(a - b) > eps**0.5 * max(abs(a), abs(b)) + rounding for a, b in pairs)
    moved = torch.zeros_like(outputs) if path[1] is None else path[1]
    same = same and bool((moved - change).abs().max() <= eps**0.5 * change.abs().max() + rounding)
    return "" if same else "they differ from the backward ones"
