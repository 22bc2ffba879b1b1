"""Elimination on a quadratic model of the loss, with its whole inverse: what the OBS criteria share.

The model is ``½ (w − c)ᵀ H (w − c)`` up to a constant, H the damped curvature and c its minimum: the weights
themselves where the gradient is taken to be zero (OBS), a Newton step away where it is not (WoodTaylor).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from prunekit import Criterion, Options, Statistic

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]


class SurgeonOptions(Options):
    """Options of the criteria with a whole inverse.

    Attributes:
        curvature: ``ggn``, exact over classes; ``ggn_mc``, from labels that the model draws;
            ``empirical_fisher``; ``hessian``.
        damping: Multiple of the identity added before inverting; λ is added to it.
        draws: Labels per loss term, for ``ggn_mc``.
        update: Adjust the surviving weights.
        selection: ``greedy`` eliminates one weight after another, the inverse and the weights brought up to
            date in between; ``saliency`` ranks all at once and leaves the choice to the selector.
    """

    curvature: Literal["ggn", "ggn_mc", "empirical_fisher", "hessian"] = "ggn"
    damping: float = Field(default=1e-4, ge=0)
    draws: int = Field(default=1, ge=1)
    update: bool = True
    selection: Literal["greedy", "saliency"] = "greedy"


class Surgeon(Criterion):
    """Base of ``obs`` and ``obs_gradient``."""

    Options = SurgeonOptions
    damps = True

    @property
    def inverse(self) -> Statistic:
        """The statistic with the inverse."""
        options = self.options
        return Statistic(
            "inverse_full",
            curvature=options.curvature,
            damping=options.damping + self.lam,
            draws=options.draws,
        )

    @property
    def requires(self) -> frozenset[str | Statistic]:  # type: ignore[override]
        """The inverse."""
        return frozenset({self.inverse})

    def minimum(self, weights: Tensors, statistics: Mapping[Any, Tensors]) -> Tensor:
        """Where the model has its minimum, over the kept weights: here at the weights. Flat, float64."""
        return flat(weights)[statistics[self.inverse].kept]  # type: ignore[attr-defined]

    def slope(self, statistics: Mapping[Any, Tensors]) -> Tensor | None:
        """The gradient in the model, over all weights, or ``None`` for zero."""
        return None

    def saliency(self, weights: Tensors, statistics: Mapping[Any, Tensors]) -> dict[str, Tensor]:
        """``c_q² / (2 [H⁻¹]_qq)``, for each weight on its own."""
        import torch

        found: Any = statistics[self.inverse]
        values = torch.zeros(
            sum(w.numel() for w in weights.values()), dtype=torch.float64, device=found.kept.device
        )
        values[found.kept] = self.minimum(weights, statistics).square() / (2 * found.matrix.diagonal())
        return shaped(values, weights)

    @property
    def select(self) -> Any:
        """Greedy selection, where it is asked for."""
        return self._eliminate if self.options.selection == "greedy" else None

    @property
    def update(self) -> Any:
        """New values for the survivors, where they are asked for."""
        return self._adjusted if self.options.update else None

    def predicted_delta_loss(
        self, weights: Tensors, statistics: Mapping[Any, Tensors], masks: Tensors
    ) -> float:
        """``gᵀΔ + ½ ΔᵀCΔ`` with the change that the step makes and the curvature without damping, in nats."""
        found: Any = statistics[self.inverse]
        before = flat(weights)
        after = flat(self._adjusted(weights, statistics, masks)) if self.options.update else before.clone()
        after[~flat(masks).bool()] = 0
        change = after - before
        kept = change[found.kept]
        slope = self.slope(statistics)
        first = 0.0 if slope is None else float(slope @ change)
        return first + 0.5 * float(kept @ (found.curvature @ kept))

    def _eliminate(
        self, weights: Tensors, statistics: Mapping[Any, Tensors], masks: Tensors, budget: int
    ) -> dict[str, Tensor]:
        import torch

        found: Any = statistics[self.inverse]
        inverse, values = found.matrix.clone(), self.minimum(weights, statistics).clone()
        there = torch.ones_like(values, dtype=torch.bool)
        total = sum(m.numel() for m in masks.values())
        for _ in range(budget - (total - len(values))):
            loss = values.square() / (2 * inverse.diagonal())
            q = int(loss.masked_fill_(~there, torch.inf).argmin())
            column = inverse[:, q].clone()
            values -= values[q] / column[q] * column
            # The inverse of the matrix without row and column q, with zeros in their place.
            inverse.addr_(column, column, alpha=-1 / float(column[q]))
            there[q] = False
            inverse[q, q] = 1.0  # unused; keeps the quotients finite
        left = torch.zeros(total, dtype=torch.bool, device=values.device)
        left[found.kept] = there
        return shaped(left, masks)

    def _adjusted(
        self, weights: Tensors, statistics: Mapping[Any, Tensors], masks: Tensors
    ) -> dict[str, Tensor]:
        """The minimum of the model with the pruned weights at zero: ``c − H⁻¹_{:,S} ([H⁻¹]_SS)⁻¹ c_S``."""
        import torch

        found: Any = statistics[self.inverse]
        values = self.minimum(weights, statistics)
        gone = ~flat(masks).bool()[found.kept]
        if bool(gone.any()):
            columns = found.matrix[:, gone]
            factor = torch.linalg.cholesky(columns[gone])
            solved = torch.cholesky_solve(values[gone].unsqueeze(1), factor)
            values = values - (columns @ solved).squeeze(1)
        everything = flat(weights).clone()
        everything[found.kept] = values
        return {n: v.to(weights[n].dtype) for n, v in shaped(everything, weights).items()}


def flat(tensors: Tensors) -> Tensor:
    """All values in one float64 vector, tensors one after another."""
    import torch

    return torch.cat([t.flatten().double() for t in tensors.values()])


def shaped(values: Tensor, like: Tensors) -> dict[str, Tensor]:
    """Undo :func:`flat`."""
    import torch

    parts = torch.split(values, [t.numel() for t in like.values()])
    return {name: part.view(t.shape) for (name, t), part in zip(like.items(), parts, strict=True)}
