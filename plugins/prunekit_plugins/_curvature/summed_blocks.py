"""Statistics that add up blocks of outer products while the data go by."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from prunekit import Estimator, UnsupportedError
from prunekit.units import memory_option, readable_bytes
from prunekit_plugins._curvature.options import Columns, InverseOptions, derived, hessian_columns

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Statistics, Tensors
    from prunekit.masks import Layer
    from prunekit.statistics import ForwardPass, Problem
    from prunekit_plugins._curvature.block_sums import BlockSums, Places

_MOST_PRODUCTS = 20_000  # Hessian products per batch


class SummedBlocks(Estimator):
    """(C + αI)⁻¹ of blocks of each parameter's kept weights. A subclass says which blocks.

    The sums are kept in the weights' dtype (float32 at least) and inverted in float64, block by block, when the
    inverse is asked for. For the Hessian, one Hessian product per kept weight and batch.

    Attributes:
        by_unit: Whether each block's weights feed one unit, so that the columns of a loss's factor merge.
    """

    Options = InverseOptions
    options: InverseOptions
    captures = True
    additive = False
    by_unit: ClassVar[bool] = False

    @property
    def second_order(self) -> bool:
        """Only the Hessian's graph is differentiated twice."""
        return self.options.curvature == "hessian"

    @abstractmethod
    def blocks(self, layer: Layer, keep: Tensor) -> Places:
        """The blocks of a parameter's kept weights; ``keep`` has its shape."""

    def derive(self, known: Statistics) -> Tensors | None:
        """From the same curvature with another damping."""
        return derived(self, known)

    def start(self, problem: Problem) -> None:
        """Lay out the blocks of the kept weights."""
        import torch

        from prunekit_plugins._curvature.block_sums import BlockSums, MergedColumns

        self._problem, self._held = problem, 0
        self._columns = Columns(problem, self.options)
        self._sums: dict[str, BlockSums] = {}
        of_parameter = MergedColumns if self.by_unit else BlockSums
        widest = "", 0
        for layer in problem.layers():
            p = problem.parameters[layer.name]
            mask = None if problem.masks is None else problem.masks[layer.name].to(p.device)
            keep = torch.ones(p.shape, dtype=torch.bool, device=p.device) if mask is None else mask
            places = self.blocks(layer, keep)
            room = partial(self._room, p, places)
            self._sums[layer.name] = of_parameter(layer.name, layer.start, layer.size, places, room)
            widest = max(widest, (layer.name, places.index.shape[1]), key=lambda item: item[1])
        refuse_large_blocks(self.name, widest, problem.memory)
        if self.second_order and (count := len(problem.kept())) > _MOST_PRODUCTS:
            raise UnsupportedError(
                f"{self.name}: the Hessian takes a product for each of {count:,} kept weights and each batch, and at "
                f"most {_MOST_PRODUCTS:,} of them are accepted; use curvature ggn, ggn_mc or empirical_fisher, or prune "
                "fewer layers (prunable)"
            )

    def add(self, batch: ForwardPass) -> None:
        """Add the batch's outer products, or its Hessian."""
        if self.second_order:
            self._add_hessian(batch)
            return
        from prunekit.statistics import outward, rows_by_parameter

        inputs = self._single_positions(batch)
        for column in self._columns(batch):
            returned = batch.backward(column)
            for name, u in inputs.items():
                v = outward(batch.uses[name][0], returned[name][0])[:, 0, :, 0]
                self._sums[name].add_factors(u, v.to(u.dtype))
            for name, parts in rows_by_parameter(batch, column, returned, self._problem.memory // 8, inputs):
                self._sums[name].add_rows(parts)
        for sums in self._sums.values():
            sums.end_batch()
        if sum(sums.held for sums in self._sums.values()) > self._problem.memory // 2:
            for sums in self._sums.values():
                sums.settle()

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Divide; the inverse of each block follows when it is asked for."""
        from prunekit_plugins._curvature.blocks import Blocks

        families = [sums.divided(normaliser, not self.second_order) for sums in self._sums.values()]
        shapes = {name: p.shape for name, p in self._problem.parameters.items()}
        blocks = [family for family in families if family is not None]
        found = Blocks(self.name, shapes, blocks, self.options.damping, self._problem.memory)
        found.remark = self._columns.remark
        return found

    def _single_positions(self, batch: ForwardPass) -> dict[str, Tensor]:
        """What entered linear layers that see one position per example, ``[examples, inputs]``."""
        from prunekit.statistics import inward

        entered = {}
        for name, uses in batch.uses.items():
            geometry = uses[0].geometry
            if len(uses) == 1 and not (geometry.dims or geometry.bias or geometry.transposed):
                u = inward(uses[0])
                if u.shape[3] == 1:
                    # A copy: what entered may be the caller's own memory, filled again with the next batch.
                    dtype = self._problem.dtype(self._problem.parameters[name])
                    entered[name] = u[:, 0, :, 0].to(dtype, copy=True)
        return entered

    def _add_hessian(self, batch: ForwardPass) -> None:
        import torch

        kept, entries = [], []
        for sums in self._sums.values():
            there = sums.places.there
            kept.append((sums.places.index + sums.start)[there])
            entries += [(sums, int(row), int(place)) for row, place in there.nonzero()]
        if not kept:
            return
        for number, column in hessian_columns(batch, torch.cat(kept)):
            sums, row, place = entries[number]
            sums.add_column(row, place, column)

    def _room(self, parameter: Tensor, places: Places) -> Tensor:
        """A parameter's sums, zero."""
        import torch

        memory, dtype = self._problem.memory, self._problem.dtype(parameter)
        blocks, width = places.index.shape
        needed = self._held + blocks * width**2 * dtype.itemsize
        if needed > memory:
            raise UnsupportedError(self._too_much(parameter, needed, width))
        self._held = needed
        return torch.zeros(blocks, width, width, dtype=dtype, device=parameter.device)

    def _too_much(self, parameter: Tensor, needed: int, width: int) -> str:
        """The message for blocks that do not fit."""
        memory = self._problem.memory
        name = next(name for name, p in self._problem.parameters.items() if p is parameter)
        return (
            f"{self.name}: blocks of {width:,} weights take {readable_bytes(needed)} up to {name}; the memory budget "
            f"is {readable_bytes(memory)}. Raise it (memory), or use smaller blocks "
            f"(size: {max(1, int(width * memory / needed))} would fit)"
        )


def largest_block_that_fits(memory: int) -> int:
    """How many weights a block may have so that it can be inverted in so many bytes."""
    return int((memory / (8 * 6)) ** 0.5)


def refuse_large_blocks(statistic: str, largest: tuple[str, int], memory: int) -> None:
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
