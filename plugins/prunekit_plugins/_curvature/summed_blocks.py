"""Statistics that add up blocks of outer products while the data go by."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prunekit import Estimator, UnsupportedError
from prunekit.units import memory_option, readable_bytes
from prunekit_plugins._curvature.options import InverseOptions, columns, derived, hessian_columns

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Statistics, Tensors
    from prunekit.statistics import ForwardPass, Problem
    from prunekit_plugins._curvature.blocks import Family

_MOST_PRODUCTS = 20_000  # Hessian products per batch
_TOGETHER = 512  # rows of a parameter that are added up at once
_STRIPE = 8 << 20  # bytes of rows that are formed at once


class SummedBlocks(Estimator):
    """(C + αI)⁻¹ of blocks of each parameter's kept weights. A subclass says which blocks.

    The sums are kept in the weights' dtype (float32 at least) and inverted in float64, block by block, when the
    inverse is asked for. For the Hessian, one Hessian product per kept weight and batch.
    """

    Options = InverseOptions
    captures = True
    additive = False

    @property
    def second_order(self) -> bool:  # type: ignore[override]
        """Only the Hessian's graph is differentiated twice."""
        return bool(self.options.curvature == "hessian")

    @abstractmethod
    def blocks(self, shape: Sequence[int], keep: Tensor, input_axis: int) -> tuple[Tensor, Tensor, Tensor]:
        """Blocks of a parameter: flat positions in it, which are there, and the row that each belongs to."""

    def derive(self, known: Statistics) -> Tensors | None:
        """From the same curvature with another damping."""
        return derived(self, known)

    def start(self, problem: Problem) -> None:
        """Lay out the blocks of the kept weights."""
        import torch

        from prunekit.masks import input_axes

        self._problem = problem
        axes, offset = input_axes(problem.model), 0
        self._offsets: dict[str, int] = {}
        self._blocks: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._sums: dict[str, Tensor] = {}
        self._waiting: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for name, p in problem.parameters.items():
            mask = None if problem.masks is None else problem.masks[name].to(p.device)
            keep = torch.ones(p.shape, dtype=torch.bool, device=p.device) if mask is None else mask
            self._blocks[name] = self.blocks(tuple(p.shape), keep, axes.get(id(p), 1))
            self._offsets[name] = offset
            offset += p.numel()
        widths = {name: index.shape[1] for name, (index, _, _) in self._blocks.items()}
        refuse_large_blocks(self.name, max(widths.items(), key=lambda item: item[1]), problem.memory)
        if self.second_order and (count := len(problem.kept())) > _MOST_PRODUCTS:
            raise UnsupportedError(
                f"{self.name}: the Hessian takes a product for each of {count:,} kept weights and batch, and at most "
                f"{_MOST_PRODUCTS:,} are taken; use curvature ggn, ggn_mc or empirical_fisher, or prune fewer layers "
                "(prunable)"
            )

    def add(self, batch: ForwardPass) -> None:
        """Add the batch's outer products, or its Hessian."""
        if self.second_order:
            self._add_hessian(batch)
            return
        from prunekit.statistics import outward, rows_by_parameter

        inputs = self._single_positions(batch)
        for column in columns(self.options, batch):
            returned = batch.backward(column)
            for name, u in inputs.items():
                v = outward(batch.uses[name][0], returned[name][0])[:, 0, :, 0]
                self.add_factors(name, u, v.to(u.dtype))
            for name, parts in rows_by_parameter(batch, column, returned, self._problem.memory // 8, inputs):
                self.add_rows(name, parts)

    def add_factors(self, name: str, inputs: Tensor, returned: Tensor) -> None:
        """Add the outer products of the rows ``v uᵀ``: u ``[examples, inputs]``, v ``[examples, outputs]``.

        They wait until there are many: the sums are far larger than the factors, and are then read and written once.
        """
        waiting = self._waiting.setdefault(name, [])
        waiting.append((inputs, returned))
        if sum(len(u) for u, _ in waiting) >= _TOGETHER:
            self._sum_waiting(name)

    def add_rows(self, name: str, parts: Iterator[Tensor]) -> None:
        """Add the outer products of the rows ``[examples, weights]`` of a parameter."""
        import torch

        index, there, _ = self._blocks[name]
        if not len(index):
            return
        sums = self.room(name)
        width, order = index.shape[1], index.flatten()
        # Nothing pruned, nothing padded, and units not apart in memory as those of a transposed convolution are.
        plain = bool(there.all()) and torch.equal(
            order, torch.arange(self._problem.parameters[name].numel(), device=order.device)
        )
        for rows in parts:
            if plain:
                picked = rows.view(len(rows), -1, width)
            else:
                picked = rows[:, order].view(len(rows), -1, width)
                picked = picked.masked_fill_(~there, 0.0)
            picked = picked.to(sums.dtype)
            sums.baddbmm_(picked.permute(1, 2, 0), picked.transpose(0, 1))

    def _sum_waiting(self, name: str) -> None:
        import torch

        index, there, _ = self._blocks[name]
        # A weight's entries of all rows side by side: picking weights then copies runs of memory.
        u, v = (torch.cat(parts).t().contiguous() for parts in zip(*self._waiting.pop(name), strict=True))
        if not len(index):
            return
        sums, (inputs, count) = self.room(name), u.shape
        blocks = max(1, _STRIPE // (count * index.shape[1] * u.element_size()))
        # Fresh memory would cost more than what is written to it.
        room = u.new_empty(2, min(blocks, len(index)) * index.shape[1], count)
        for start in range(0, len(index), blocks):
            part, some = index[start : start + blocks], there[start : start + blocks]
            flat = part.flatten()
            rows, other = room[:, : len(flat)]
            torch.index_select(v, 0, flat // inputs, out=rows)
            torch.index_select(u, 0, flat % inputs, out=other)
            rows = rows.mul_(other).view(*part.shape, count)
            if not bool(some.all()):
                rows.masked_fill_(~some.unsqueeze(2), 0.0)
            sums[start : start + blocks].baddbmm_(rows, rows.transpose(1, 2))

    def _single_positions(self, batch: ForwardPass) -> dict[str, Tensor]:
        """What entered linear layers that see one position per example, ``[examples, inputs]``."""
        from prunekit.statistics import inward

        found = {}
        for name, uses in batch.uses.items():
            if len(uses) == 1 and uses[0].geometry.dims == 0 and not uses[0].geometry.bias:
                u = inward(uses[0])
                if u.shape[3] == 1:
                    # A copy: what entered may be the caller's own memory, filled again with the next batch.
                    dtype = self._problem.dtype(self._problem.parameters[name])
                    found[name] = u[:, 0, :, 0].to(dtype, copy=True)
        return found

    def families(self) -> Iterator[Family]:
        """The blocks, as sums over the batches."""
        from prunekit_plugins._curvature.block_families import Summed

        for name, (index, there, _) in self._blocks.items():
            if len(index) and (name in self._sums or not self.merged(name)):
                yield Summed(name, index + self._offsets[name], there, self.room(name))

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Divide; the inverse of each block follows when it is asked for."""
        from prunekit_plugins._curvature.blocks import Blocks

        self.divide(normaliser)
        shapes = {name: p.shape for name, p in self._problem.parameters.items()}
        families = list(self.families())
        return Blocks(self.name, shapes, families, self.options.damping, self._problem.memory)

    def merged(self, name: str) -> bool:
        """Whether a subclass keeps the parameter's blocks in another form."""
        return False

    def divide(self, normaliser: float) -> None:
        """Divide the sums by the loss's normaliser."""
        for name in list(self._waiting):
            self._sum_waiting(name)
        for sums in self._sums.values():
            if self.second_order:  # rounding makes its columns differ from its rows
                sums.copy_((sums + sums.transpose(1, 2)) / 2)
            sums.div_(normaliser)

    def room(self, name: str) -> Tensor:
        """A parameter's sums, made when they are first needed."""
        import torch

        if name not in self._sums:
            index, _, _ = self._blocks[name]
            p = self._problem.parameters[name]
            held = sum(s.nbytes for s in self._sums.values())
            dtype = self._problem.dtype(p)
            blocks, width = index.shape
            needed = blocks * width**2 * dtype.itemsize
            if held + needed > self._problem.memory:
                raise UnsupportedError(self.too_much(name, held + needed, width))
            self._sums[name] = torch.zeros(blocks, width, width, dtype=dtype, device=p.device)
        return self._sums[name]

    def too_much(self, name: str, needed: int, width: int) -> str:
        """The message for blocks that do not fit."""
        memory = self._problem.memory
        smaller = max(1, int(width * memory / needed))
        return (
            f"{self.name}: blocks of {width:,} weights take {readable_bytes(needed)} up to {name}; the memory budget "
            f"is {readable_bytes(memory)}. Raise it (memory), or use smaller blocks (size: {smaller} would fit)"
        )

    def _add_hessian(self, batch: ForwardPass) -> None:
        import torch

        kept, places = [], []
        for name, (index, there, _) in self._blocks.items():
            kept.append((index + self._offsets[name])[there])
            places += [(name, int(row), int(column)) for row, column in there.nonzero()]
        if not kept:
            return
        for number, column in hessian_columns(batch, torch.cat(kept)):
            name, row, place = places[number]
            index, there, _ = self._blocks[name]
            sums = self.room(name)
            found = column[index[row] + self._offsets[name]].masked_fill(~there[row], 0.0)
            sums[row, place] += found.to(sums.dtype)


def largest_block_that_fits(memory: int) -> int:
    """How many weights a block may have so that it can be inverted in so many bytes."""
    return int((memory / (8 * 6)) ** 0.5)


def refuse_large_blocks(statistic: str, largest: Any, memory: int) -> None:
    """Refuse a block that cannot be inverted within the memory.

    Args:
        statistic: Its name.
        largest: Layer name and size of its blocks.
        memory: Bytes.

    Raises:
        UnsupportedError: With what would fit.
    """
    layer, size = largest
    most = largest_block_that_fits(memory)
    if size > most:
        raise UnsupportedError(
            f"{statistic}: {layer} has blocks of {size:,} weights, and inverting one takes "
            f"{readable_bytes(8 * 6 * size**2)}; the memory budget is {readable_bytes(memory)}. Use smaller blocks "
            f"(size: {most} fits), raise the memory budget (memory: {memory_option(8 * 6 * size**2)}), "
            "or prune fewer layers (prunable)"
        )
