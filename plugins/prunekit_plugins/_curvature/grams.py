"""Second moments of what enters a layer, ``H = Σ x xᵀ``, added up over all uses of its weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import Literal, Self, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from prunekit import Detailed, UnsupportedError
from prunekit.statistics import ForwardPass, Part, Problem, Rows, Use, inward
from prunekit_plugins._curvature.cost import transposed

T = TypeVar("T")

Precision: TypeAlias = Literal["double", "auto"]
"""``auto`` adds up in single precision where a layer has :data:`MANY` inputs, unless the weights are double."""

MANY = 512
_PANEL = 256  # rows of a product that is symmetric, of which only the lower part is formed


class Moments:
    """H of some matrices, with what has been made of it; layers that see the same inputs share one.

    Attributes:
        matrix: ``[groups, inputs, inputs]``.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self._made: tuple[object, object] | None = None

    @property
    def diagonal(self) -> Tensor:
        """``[groups, inputs]``."""
        return self.matrix.diagonal(dim1=1, dim2=2)

    @property
    def live(self) -> Tensor:
        """Inputs that are not always zero ``[groups, inputs]``."""
        return self.diagonal > 0

    @property
    def mean(self) -> float:
        """Of the diagonal, over inputs that are not always zero."""
        return float(self.diagonal.sum() / self.live.sum().clamp(min=1))

    def damped(self, damping: float) -> Tensor:
        """H with damping, a copy; one at inputs that are always zero, which stand apart whatever is there."""
        matrices = self.matrix.clone()
        diagonal = matrices.diagonal(dim1=1, dim2=2)
        diagonal.copy_(torch.where(self.live, diagonal + damping, 1.0))
        return matrices

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What is made of H, kept until something else is asked for."""
        if self._made is None or self._made[0] != key:
            self._made = None  # not two at a time
            self._made = key, make()
        return cast("T", self._made[1])

    def forget(self) -> None:
        """Let go of what has been made of H."""
        self._made = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Moments:
        """The same with a function applied to the matrix."""
        return Moments(function(self.matrix))


@dataclass(frozen=True)
class Gram:
    """A parameter's H, and how the parameter lies in rows.

    Attributes:
        moments: The parameter's rows belong to its groups in equal parts.
        rows: One for each output.
    """

    moments: Moments
    rows: Rows

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, rows of each, inputs."""
        groups = len(self.moments.matrix)
        return groups, self.rows.count // max(1, groups), self.rows.inputs

    def of(self, tensor: Tensor) -> Tensor:
        """What has the parameter's shape, ``[groups, rows, inputs]``."""
        return self.rows.of(tensor).view(self.shape)

    def back(self, tensor: Tensor) -> Tensor:
        """Undo :meth:`of`."""
        return self.rows.back(tensor.reshape(self.rows.count, self.rows.inputs))

    def error(self, change: Tensor) -> float:
        """``Σ_r Δ_rᵀ H Δ_r``: the squared error at the layer's outputs, per loss normaliser."""
        moved = self.of(change).to(self.moments.matrix)
        return float((torch.bmm(moved, self.moments.matrix) * moved).sum(dtype=torch.float64))

    def map(self, function: Callable[[Tensor], Tensor]) -> Gram:
        """The same with a function applied to the matrix."""
        return Gram(self.moments.map(function), self.rows)


class LayerGrams(Detailed):
    """The diagonal of H by parameter, in its shape, and H itself.

    Attributes:
        grams: By parameter.
        damping: What a criterion adds to the diagonal of each H before it inverts it.
    """

    def __init__(self, grams: Mapping[str, Gram], damping: float) -> None:
        self.grams, self.damping = dict(grams), damping
        super().__init__(
            {
                name: gram.back(gram.moments.diagonal.unsqueeze(1).expand(gram.shape))
                for name, gram in grams.items()
            }
        )

    def by_inputs(self, names: Iterable[str]) -> Iterator[tuple[str, Gram]]:
        """Parameters with their H, one after another; what has been made of an H goes when the next one comes."""
        before: Moments | None = None
        for name in names:
            gram = self.grams[name]
            if before is not None and before is not gram.moments:
                before.forget()
            before = gram.moments
            yield name, gram
        if before is not None:
            before.forget()

    def with_damping(self, damping: float) -> Self:
        """The same with another damping."""
        other = copy(self)
        other.damping = damping
        return other


class GramSums:
    """Adds up the second moments of what enters some layers.

    Parameters whose uses have had the same inputs in every batch share one sum.

    Args:
        statistic: Its name, for messages.
        problem: With its parameters and memory.
        precision: In which they are added up.
        refuse: Given bytes, a parameter and its inputs, the error for sums that take more than the memory.
        working: Matrices of the largest layer that are needed beside the sums.
    """

    def __init__(
        self,
        statistic: str,
        problem: Problem,
        precision: Precision,
        refuse: Callable[[int, str, int], UnsupportedError],
        working: int,
    ) -> None:
        self._statistic, self._problem, self._precision = statistic, problem, precision
        self._refuse, self._working = refuse, working
        self._sums: dict[str, dict[Part, _Sum]] = {}
        self._rows: dict[str, Rows] = {}

    def add(self, batch: ForwardPass) -> None:
        """Add the products of a batch's inputs."""
        inputs: dict[int, tuple[_Sum, list[Use]]] = {}
        entered: dict[object, _Sum] = {}
        for name, uses in batch.seen.items():
            by_part: dict[Part, list[Use]] = {}
            for use in uses:
                by_part.setdefault(self._part(name, use), []).append(use)
            for part, some in by_part.items():
                key = tuple(map(_what_entered, some))
                total = self._sum(name, part, entered.get(key))
                known = inputs.get(id(total))
                if known is not None and tuple(map(_what_entered, known[1])) != key:
                    total = self._sums[name][part] = total.parted()  # here their ways part
                entered.setdefault(key, total)
                inputs[id(total)] = total, some
        for total, uses in inputs.values():
            for use in uses:
                total.add(use, self._problem.memory // 8)

    def grams(self, normaliser: float) -> Iterator[tuple[str, Gram]]:
        """H of every parameter, per normaliser; the sums are gone afterwards."""
        made: dict[tuple[int, ...], Moments] = {}
        for name, p in self._problem.parameters.items():
            if name not in self._rows:  # not in use
                rows = self._rows[name] = Rows.plain(p.shape)
                self._sum(name, Part(rows, (0,), rows.count), None)
            rows, sums = self._rows[name], self._sums.pop(name)
            key = tuple(id(total) for total in sums.values())
            if key not in made or len(made[key].matrix) != self._groups(rows, sums):
                made[key] = Moments(self._whole(rows, sums, normaliser))
            yield name, Gram(made[key], rows)
            if not any(set(key) & {id(t) for t in others.values()} for others in self._sums.values()):
                del made[key]

    def _part(self, name: str, use: Use) -> Part:
        p = self._problem.parameters[name]
        if use.part is None and not use.geometry.bias:
            raise transposed(self._statistic, name)
        part = use.part or Part(Rows(tuple(p.shape), 1), (0,), p.numel())
        if self._rows.setdefault(name, part.rows) != part.rows:
            raise UnsupportedError(f"{self._statistic}: {name} is used with inputs that do not correspond")
        return part

    def _sum(self, name: str, part: Part, like: _Sum | None) -> _Sum:
        """A part's sum; at its first use that of another one, if that has had the same inputs and is as new."""
        mine = self._sums.setdefault(name, {})
        if part in mine:
            return mine[part]
        groups, inputs = len(part.starts), part.rows.inputs
        if like is not None and like.fresh and like.shape == (groups, inputs):
            mine[part] = like
            return like
        p = self._problem.parameters[name]
        single = self._precision == "auto" and inputs >= MANY and p.dtype != torch.float64
        dtype = torch.float32 if single else torch.float64
        held = {id(total): total.nbytes for sums in self._sums.values() for total in sums.values()}
        size = inputs**2 * (4 if single else 8)
        needed = sum(held.values()) + groups * size + self._working * size
        if needed > self._problem.memory:
            raise self._refuse(needed, name, inputs)
        mine[part] = _Sum(groups, inputs, dtype, p.device)
        return mine[part]

    @staticmethod
    def _groups(rows: Rows, sums: Mapping[Part, _Sum]) -> int:
        first = next(iter(sums))
        if len(sums) == 1 and first.whole:
            return len(first.starts)
        return rows.count // math.gcd(rows.count, *(n for part in sums for n in (*part.starts, part.units)))

    def _whole(self, rows: Rows, sums: Mapping[Part, _Sum], normaliser: float) -> Tensor:
        """The sums of all uses per normaliser, for equal parts of the rows."""
        first, found = next(iter(sums.items()))
        if len(sums) == 1 and first.whole:
            return found.finished(normaliser)
        groups = self._groups(rows, sums)
        size = rows.count // groups
        dtype = torch.float64 if any(s.dtype == torch.float64 for s in sums.values()) else torch.float32
        total = torch.zeros(groups, rows.inputs, rows.inputs, dtype=dtype, device=found.device)
        for part, some in sums.items():
            for start, one in zip(part.starts, some.finished(normaliser), strict=True):
                total[start // size : (start + part.units) // size] += one
        return total


class _Sum:
    """A sum of ``x xᵀ``, of which the lower part is formed; empty until something is added."""

    def __init__(self, groups: int, inputs: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype, self.device, self.fresh = (groups, inputs), dtype, device, True
        self._lower: Tensor | None = None
        self._finished = False

    @property
    def nbytes(self) -> int:
        groups, inputs = self.shape
        return groups * inputs**2 * self.dtype.itemsize

    def parted(self) -> _Sum:
        """A copy that goes on by itself."""
        other = _Sum(*self.shape, self.dtype, self.device)
        other._lower, other.fresh = None if self._lower is None else self._lower.clone(), self.fresh
        return other

    def add(self, use: Use, room: int) -> None:
        """Add a use's products."""
        self.fresh = False
        lower = self._zeros()
        inputs = self.shape[1]
        for x in _entered(use, room, self.dtype):
            for start in range(0, inputs, _PANEL):
                stop = min(inputs, start + _PANEL)
                lower[:, start:stop, :stop].baddbmm_(x[:, start:stop], x[:, :stop].mT)

    def finished(self, normaliser: float) -> Tensor:
        """The whole sum per normaliser, once nothing is added any more."""
        lower, inputs = self._zeros(), self.shape[1]
        if self._finished:
            return lower
        self._finished = True
        for start in range(0, inputs, _PANEL):
            stop = min(inputs, start + _PANEL)
            square = lower[:, start:stop, start:stop]  # formed whole, and rounding leaves it lopsided
            square.copy_((square + square.mT) / 2)
            lower[:, :start, start:stop] = lower[:, start:stop, :start].mT
        return lower.div_(normaliser)

    def _zeros(self) -> Tensor:
        if self._lower is None:
            groups, inputs = self.shape
            self._lower = torch.zeros(groups, inputs, inputs, dtype=self.dtype, device=self.device)
        return self._lower


def _what_entered(use: Use) -> object:
    """Tells apart what entered two uses: the same memory in the same arrangement is the same input."""
    x, part = use.input, use.part
    where = x.data_ptr(), x._version, tuple(x.shape), x.stride(), x.dtype
    return (
        where,
        use.geometry,
        tuple(use.output_shape[2:]) if use.geometry.dims else None,
        part and part.rows.kernel,
    )


def _entered(use: Use, room: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """What entered, ``[groups, inputs, positions]``, some examples at a time."""
    geometry, count = use.geometry, len(use.input)
    size = dtype.itemsize
    if geometry.batched:
        positions = use.input.shape[1]
        some = max(1, room // (2 * size * max(1, use.input.numel() // max(1, positions))))
        for start in range(0, positions, some):
            yield use.input[:, start : start + some].to(dtype).mT
        return
    inputs = use.part.rows.inputs if use.part is not None else 1
    spatial = use.output_shape[2:] if geometry.dims else use.output_shape[1:-1]
    row = (
        2 * size * geometry.groups * inputs * spatial.numel()
    )  # an example's patches, and the same converted
    some = max(1, room // row)
    for start in range(0, count, some):
        u = inward(replace(use, input=use.input[start : start + some]))
        yield u.to(dtype).permute(1, 2, 0, 3).flatten(2)
