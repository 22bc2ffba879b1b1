"""The inverse of a whole curvature matrix by its products, from stored gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING

from pydantic import Field

from prunekit import Estimator, UnsupportedError
from prunekit.units import memory_option, readable_bytes
from prunekit_plugins._curvature.options import Columns, InverseOptions, OuterProducts

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.masks import Layer
    from prunekit.statistics import ForwardPass, Problem


class ProductOptions(InverseOptions):
    """Options.

    Attributes:
        curvature: ``ggn``, exact over classes, with a vector for each class but one; ``ggn_mc``, from labels that the
            model draws, with one for each draw; ``empirical_fisher``, with one for each loss term. The Hessian is no
            sum of outer products.
        damping: α, above 0: without it the sum of few outer products has no inverse.
        draws: Labels per loss term, for ``ggn_mc``.
    """

    curvature: OuterProducts = "ggn"
    damping: float = Field(default=1e-4, gt=0)


class InverseProducts(Estimator):
    """(αI + 1/normaliser Σ g gᵀ)⁻¹ over all kept weights, known by its products (M-FAC).

    The gradients g, one for each example and column, are stored, and the inverse is applied by the Woodbury identity:
    one Gram matrix of the m vectors and one m × m factorisation. It is the same inverse as that of M-FAC's recursion,
    which goes vector by vector for about as many operations: here they are a matrix product, and no error
    is handed from one vector to the next. The result takes ``inverse @ {name: tensor}``.
    Reference: Frantar, Kurtic & Alistarh (2021), section 3.

    Cost: memory for m · K numbers of K kept weights, in the weights' dtype (float32 at least), and 2 m² in float64;
    m² K operations once, 4 m K for a product.
    """

    name = "inverse_products"
    Options = ProductOptions
    captures = True
    additive = False

    def check(self, layers: Sequence[Layer], memory: int) -> None:
        """Refuse what has no room for a single vector; how many there will be is not known yet."""
        self._fitting(sum(layer.size for layer in layers), 4, memory)

    def start(self, problem: Problem) -> None:
        """See where each parameter's kept weights stand."""
        import torch

        self._problem = problem
        self._columns = Columns(problem, self.options)
        self._kept = problem.kept()
        self._dtype = reduce(torch.promote_types, map(problem.dtype, problem.parameters.values()))
        self._most = self._fitting(len(self._kept), self._dtype.itemsize, problem.memory)
        self._places: dict[str, tuple[int, Tensor]] = {}
        self._rows: list[Tensor] = []
        self._examples, self._count, start = 0, 0, 0
        for name, p in problem.parameters.items():
            index = torch.arange(p.numel(), device=p.device)
            if problem.masks is not None:
                index = index[problem.masks[name].flatten().to(p.device)]
            self._places[name] = start, index
            start += len(index)

    def _fitting(self, weights: int, size: int, memory: int) -> int:
        """How many vectors fit."""
        room, each = memory * 7 / 8, weights * size
        # each · m + 16 m² = room, the second for the Gram matrix and its factor
        most = int(((each**2 + 64 * room) ** 0.5 - each) / 32)
        if most < 1:
            raise UnsupportedError(
                f"{self.name}: one vector over {weights:,} kept weights takes {readable_bytes(each)}; the memory "
                f"budget is {readable_bytes(memory)}. Raise it (memory: {memory_option(each * 8 / 7)} for one, as "
                "many times that as there are examples and columns), or prune fewer layers (prunable)"
            )
        return most

    def add(self, batch: ForwardPass) -> None:
        """Store the batch's vectors."""
        import torch

        from prunekit.statistics import rows_by_parameter

        examples, rank = len(batch.outputs), self._columns.rank(batch)
        self._examples += examples
        self._count += examples * rank
        if self._count > self._most:
            needed = self._count * len(self._kept) * self._dtype.itemsize + 16 * self._count**2
            raise UnsupportedError(
                f"{self.name}: {self._examples:,} examples (and maybe more) with {rank} vectors each over "
                f"{len(self._kept):,} kept weights take {readable_bytes(needed)}; the memory budget is "
                f"{readable_bytes(self._problem.memory)}, enough for {self._most // rank:,} examples. Use fewer "
                "examples, raise the memory budget (memory), or draw labels (curvature: ggn_mc has draws vectors per "
                "example)"
            )
        for column in self._columns(batch):
            rows = torch.zeros(examples, len(self._kept), dtype=self._dtype, device=self._kept.device)
            returned = batch.backward(column)
            for name, parts in rows_by_parameter(batch, column, returned, self._problem.memory // 8):
                (start, index), done = self._places[name], 0
                for part in parts:
                    rows[done : done + len(part), start : start + len(index)] = part[:, index]
                    done += len(part)
            self._rows.append(rows)

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Factorise the Gram matrix."""
        from prunekit_plugins._curvature.inverse_products import Products

        shapes = {name: p.shape for name, p in self._problem.parameters.items()}
        rows, self._rows = self._rows, []
        damping, memory = self.options.damping, self._problem.memory
        found = Products(shapes, rows, self._kept, normaliser, damping, memory)
        found.remark = self._columns.remark
        return found
