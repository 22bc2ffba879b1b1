"""The inverse of a whole curvature matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from prunekit import Detailed, Estimator, Options, UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.estimation import ForwardPass, Problem

_MATRICES = 3  # the curvature, its factor, the inverse


class InverseOptions(Options):
    """Options.

    Attributes:
        curvature: ``ggn``, exact over classes; ``ggn_mc``, from labels that the model draws;
            ``empirical_fisher``; ``hessian``.
        damping: α, the multiple of the identity added before inverting.
        draws: Labels per loss term, for ``ggn_mc``.
    """

    curvature: Literal["ggn", "ggn_mc", "empirical_fisher", "hessian"] = "ggn"
    damping: float = Field(default=1e-4, ge=0)
    draws: int = Field(default=1, ge=1)


class FullInverse(Detailed):
    """The diagonal of (C + αI)⁻¹ by parameter, in its shape (zero where pruned), with the matrices beside it.

    Attributes:
        matrix: (C + αI)⁻¹ over the kept weights, float64.
        curvature: C over the kept weights, undamped, float64.
        kept: Flat indices of the kept weights, parameters one after another.
    """

    def __init__(self, shapes: Mapping[str, Any], matrix: Tensor, curvature: Tensor, kept: Tensor) -> None:
        import torch

        self.matrix, self.curvature, self.kept = matrix, curvature, kept
        flat = matrix.new_zeros(sum(shape.numel() for shape in shapes.values()))
        flat[kept] = matrix.diagonal()
        parts = torch.split(flat, [shape.numel() for shape in shapes.values()])
        super().__init__({n: p.view(shape) for (n, shape), p in zip(shapes.items(), parts, strict=True)})


class InverseFull(Estimator):
    """(C + αI)⁻¹ over all kept weights, C a curvature matrix averaged like the loss; dense, in float64.

    By Cholesky factorisation, which for the sum of outer products α I + Σ g gᵀ gives what the
    Sherman-Morrison recursion gives (Hassibi & Stork, 1992). A matrix that is not positive
    definite is refused, with the damping that would make it so; nothing is replaced silently.

    Cost: memory for three K × K matrices of K kept weights; K² operations for each example and column, and
    K³ for the inverse.
    """

    name = "inverse_full"
    Options = InverseOptions
    captures = True
    additive = False

    @property
    def second_order(self) -> bool:  # type: ignore[override]
        """Only the Hessian's graph is differentiated twice."""
        return bool(self.options.curvature == "hessian")

    def check(self, weights: int, budget: int) -> None:
        """Refuse matrices that do not fit."""
        needed = _MATRICES * 8 * weights**2
        if needed > budget:
            most = int((budget / (_MATRICES * 8)) ** 0.5)
            raise UnsupportedError(
                f"inverse_full: {weights:,} kept weights take {needed / 2**30:,.1f} GiB ({_MATRICES} dense float64 "
                f"matrices) and some {weights**3 / 3e10:,.0f} s per inverse; the memory budget is "
                f"{budget / 2**30:,.2f} GiB, enough for {most:,} weights. Raise it "
                f"(memory: {-(-needed // 2**30)}GiB), or prune fewer layers (prunable)"
            )

    def start(self, problem: Problem) -> None:
        """Refuse what does not fit, and make the accumulator."""
        import torch

        self._problem = problem
        self._kept = problem.kept()
        count = len(self._kept)
        self.check(count, problem.budget)
        self._sum = torch.zeros(count, count, dtype=torch.float64, device=self._kept.device)

    def add(self, batch: ForwardPass) -> None:
        """Add the batch's outer products, or its Hessian."""
        if self.options.curvature == "hessian":
            self._add_hessian(batch)
            return
        from prunekit.estimation.rows import example_rows

        for column in self._columns(batch):
            rows = example_rows(batch, column, self._kept)
            self._sum.addmm_(rows.t(), rows)

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Divide, damp, invert."""
        import torch

        curvature = self._sum.div_(2 * normaliser)
        curvature = curvature + curvature.t()
        del self._sum  # three matrices at most at any time
        damped = curvature.clone()
        damped.diagonal().add_(self.options.damping)
        factor, info = torch.linalg.cholesky_ex(damped)
        del damped
        if int(info):
            lowest = float(torch.linalg.eigvalsh(curvature)[0])
            raise UnsupportedError(
                f"inverse_full: {self.options.curvature} + {self.options.damping:g}·I is not positive definite: the "
                f"smallest eigenvalue of the curvature is {lowest:.3g}; damping must be above {max(0.0, -lowest):.3g}"
            )
        inverse = torch.cholesky_inverse(factor)
        shapes = {name: p.shape for name, p in self._problem.parameters.items()}
        return FullInverse(shapes, inverse, curvature, self._kept)

    def _columns(self, batch: ForwardPass) -> Iterator[Tensor]:
        loss, outputs = batch.problem.loss, batch.outputs.detach()
        if self.options.curvature == "ggn":
            yield from loss.ggn_factor(outputs, batch.targets)
        elif self.options.curvature == "empirical_fisher":
            yield from loss.term_gradients(outputs, batch.targets)
        else:
            for _ in range(self.options.draws):
                drawn = loss.draw(outputs, batch.targets, self._problem.generator)
                yield drawn * self.options.draws**-0.5

    def _add_hessian(self, batch: ForwardPass) -> None:
        import torch

        product = batch.hessian_products()
        parameters = self._problem.parameters
        sizes = [p.numel() for p in parameters.values()]
        for row, index in enumerate(self._kept.tolist()):
            unit = torch.zeros(sum(sizes), dtype=torch.float64, device=self._kept.device)
            unit[index] = 1
            parts = torch.split(unit, sizes)
            vector = {
                n: part.view(p.shape).to(p) for (n, p), part in zip(parameters.items(), parts, strict=True)
            }
            found = torch.cat([h.flatten().double() for h in product(vector).values()])
            self._sum[row] += found[self._kept]
