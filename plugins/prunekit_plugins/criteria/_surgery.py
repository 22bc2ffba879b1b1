"""Elimination on a quadratic model of the loss, with its inverse in blocks: what the OBS criteria share.

The model is ``½ (w − c)ᵀ H (w − c)`` up to a constant, H the damped curvature and c its minimum: the weights
themselves where the gradient is taken to be zero (OBS), a Newton step away where it is not (WoodTaylor).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from prunekit import Criterion, Options, Statistic
from prunekit_plugins._curvature.options import Curvature
from prunekit_plugins.criteria._flat import Tensors, flat, shaped, who

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit_plugins._curvature.blocks import Blocks, Chunk


class SurgeonOptions(Options):
    """Options of the criteria with an inverse.

    Attributes:
        curvature: ``ggn``, exact over classes; ``ggn_mc``, from labels that the model draws;
            ``empirical_fisher``; ``hessian``.
        damping: Multiple of the identity added before inverting; with ``update``, λ is added to it.
        draws: Labels per loss term, for ``ggn_mc``.
        update: Adjust the surviving weights.
        selection: ``greedy`` eliminates one weight after another, the inverse and the weights brought up to
            date in between; ``saliency`` ranks all at once and leaves the choice to the selector.
        scope: Of greedy elimination: ``global``, one budget for all layers; ``layerwise``, a share for each.
        refresh: Greedy elimination computes a block's inverse anew after so many removals from it.
    """

    curvature: Curvature = "ggn"
    damping: float = Field(default=1e-4, ge=0)
    draws: int = Field(default=1, ge=1)
    update: bool = True
    selection: Literal["greedy", "saliency"] = "greedy"
    scope: Literal["global", "layerwise"] = "global"
    refresh: int = Field(default=512, ge=1)


class BlockSurgeonOptions(SurgeonOptions):
    """Options of the criteria with an inverse in blocks.

    Attributes:
        gradient: Keep the first-order term: the model's minimum is then a damped Newton step away, and survivors
            take it. Blocks do not know of each other, so the step needs more damping than the default: 0.1 or so.
    """

    gradient: bool = False


class Surgeon(Criterion):
    """Base of the criteria; a subclass names the statistic with the inverse."""

    Options: ClassVar[type[SurgeonOptions]] = SurgeonOptions
    statistic: ClassVar[str]

    @property
    def damps(self) -> bool:  # type: ignore[override]
        """λ is damping where survivors are adjusted; where they are not, it is ½λθ² of what goes."""
        return bool(self.options.update)

    @property
    def inverse(self) -> Statistic:
        """The statistic with the inverse."""
        return Statistic(self.statistic, **self.inverse_options())

    def inverse_options(self) -> dict[str, Any]:
        """Its options."""
        options = self.options
        return {
            "curvature": options.curvature,
            "damping": options.damping + (self.lam if self.damps else 0.0),
            "draws": options.draws,
        }

    @property
    def first_order(self) -> bool:
        """Whether the model has the gradient."""
        return bool(getattr(self.options, "gradient", False))

    @property
    def requires(self) -> frozenset[str | Statistic]:  # type: ignore[override]
        """The inverse, and the gradient where the model has it."""
        return frozenset({self.inverse, "gradient"} if self.first_order else {self.inverse})

    def saliency(self, weights: Tensors, statistics: Mapping[Any, Tensors]) -> dict[str, Tensor]:
        """``c_q² / (2 [H⁻¹]_qq)``, for each weight on its own."""
        import torch

        blocks: Any = statistics[self.inverse]
        minimum = flat(weights)
        if self.first_order:
            for chunk, values in self._minima(weights, statistics):
                minimum[chunk.index[chunk.there]] = values[chunk.there]
        diagonal = flat(blocks)
        kept = diagonal > 0
        values = torch.where(kept, minimum.square() / torch.where(kept, 2 * diagonal, 1.0), 0.0)
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
        blocks: Any = statistics[self.inverse]
        before = flat(weights)
        after = flat(self._adjusted(weights, statistics, masks)) if self.options.update else before.clone()
        after[~flat(masks).bool()] = 0
        change = after - before
        first = float(flat(statistics["gradient"]) @ change) if self.first_order else 0.0
        return first + 0.5 * float(blocks.curved(change))

    def _minimum(self, weights: Tensors, statistics: Mapping[Any, Tensors]) -> Callable[[Chunk], Tensor]:
        """Where the model of some blocks has its minimum: ``θ − H⁻¹g``."""
        import torch

        values = flat(weights)
        gradient = flat(statistics["gradient"]) if self.first_order else None

        def found(chunk: Chunk) -> Tensor:
            here = chunk.at(values)
            if gradient is None:
                return here
            return here - torch.bmm(chunk.inverse, chunk.at(gradient).unsqueeze(2)).squeeze(2)

        return found

    def _minima(self, weights: Tensors, statistics: Mapping[Any, Tensors]) -> Any:
        blocks: Any = statistics[self.inverse]
        minimum = self._minimum(weights, statistics)
        for chunk in blocks.chunks():
            yield chunk, minimum(chunk)

    def _eliminate(
        self, weights: Tensors, statistics: Mapping[Any, Tensors], masks: Tensors, budget: int
    ) -> dict[str, Tensor]:
        from prunekit_plugins._selection.greedy import greedy, shares

        blocks: Blocks = statistics[self.inverse]  # type: ignore[assignment]
        gone = greedy(
            blocks,
            self._minimum(weights, statistics),
            flat(self.saliency(weights, statistics)),
            masks,
            {None: budget} if self.options.scope == "global" else shares(masks, budget),
            self.options.refresh,
            penalty=None if self.damps or not self.lam else 0.5 * self.lam * flat(weights).square(),
        )
        left = flat(masks).bool()
        left[gone] = False
        return shaped(left, masks)

    def _adjusted(
        self, weights: Tensors, statistics: Mapping[Any, Tensors], masks: Tensors
    ) -> dict[str, Tensor]:
        """The minimum of the model with the pruned weights at zero: ``c − H⁻¹_{:,S} ([H⁻¹]_SS)⁻¹ c_S``."""
        blocks: Any = statistics[self.inverse]
        # The prediction and the update of one step ask for the same.
        gradient = [statistics["gradient"]] if self.first_order else []
        return blocks.remembered(  # type: ignore[no-any-return]
            who(self), (weights, masks, *gradient), lambda: self._solved(weights, statistics, masks)
        )

    def _solved(
        self, weights: Tensors, statistics: Mapping[Any, Tensors], masks: Tensors
    ) -> dict[str, Tensor]:
        """Block by block."""
        from prunekit_plugins._linalg.constrained import adjusted

        left = flat(masks).bool()
        everything = flat(weights)
        for chunk, values in self._minima(weights, statistics):
            gone = chunk.there & ~left[chunk.index]
            found = adjusted(chunk.inverse, values, gone)
            everything[chunk.index[chunk.there]] = found[chunk.there]
        return {n: v.to(weights[n].dtype) for n, v in shaped(everything, weights).items()}
