"""Optimal Brain Surgeon for the outputs of each layer (ExactOBS)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from prunekit import Criterion, Statistic
from prunekit_plugins._selection.pattern import OptionalPattern
from prunekit_plugins.criteria._flat import flat, shaped

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.masks.weights import Layer

Tensors = Mapping[str, "Tensor"]


class ExactOBSOptions(OptionalPattern):
    """Options.

    Attributes:
        damping: Multiple of the identity added to a layer's H; with ``update``, λ is added to it.
        relative_damping: The same in units of the layer's mean diagonal of H.
        update: Adjust the surviving weights.
        selection: ``greedy`` eliminates one weight after another; ``saliency`` ranks all at once and leaves the choice to
            the selector.
        scope: Of greedy elimination: ``layerwise``, each layer loses the same share and outputs compete within it;
            ``global``, the costs of all layers compete, though an error at one layer's outputs is not in the units of
            another's.
        refresh: The inverse of an output is computed anew after so many removals from it.
        n: Weights kept of every group of ``m`` along the input dimension, as in the selector ``nm``.
        m: Weights of a group.
    """

    damping: float = Field(default=0, ge=0)
    relative_damping: float = Field(default=1e-8, ge=0)
    update: bool = True
    selection: Literal["greedy", "saliency"] = "greedy"
    scope: Literal["layerwise", "global"] = "layerwise"
    refresh: int = Field(default=512, ge=1)


class ExactOBS(Criterion):
    """Greedy elimination on each layer's own error ``½ Σ_r Δ_rᵀ H Δ_r``, H the second moments of its inputs.

    Outputs do not interact, so each leaves a trace of what it would give up, in order, and the cheapest next
    weight over all traces goes; with ``n`` and ``m``, while its group has more than n left. Survivors take the
    least-squares solution for their mask. Nothing is predicted, as the task's loss is not modelled; the error of a
    layer is that for the inputs of the network as it is at the step.
    Reference: Frantar & Alistarh (2022), algorithms 1 and 2.
    """

    name = "obc"
    Options = ExactOBSOptions

    @property
    def damps(self) -> bool:  # type: ignore[override]
        """λ is damping where survivors are adjusted; where they are not, it is ½λθ² of what goes."""
        return bool(self.options.update)

    @property
    def inverse(self) -> Statistic:
        """The statistic with the inverses."""
        options = self.options
        return Statistic(
            "inverse_layer",
            damping=options.damping + (self.lam if self.damps else 0.0),
            relative_damping=options.relative_damping,
        )

    @property
    def requires(self) -> frozenset[str | Statistic]:  # type: ignore[override]
        """The inverses."""
        return frozenset({self.inverse})

    def check(self, layers: Sequence[Layer], budgets: Sequence[int]) -> None:
        """Refuse layers that do not fit the pattern, and a schedule that does not end with it."""
        self.options.check(layers, budgets)

    def saliency(self, weights: Tensors, statistics: Mapping[Any, Tensors]) -> dict[str, Tensor]:
        """``c_q² / (2 [H⁻¹]_qq)``, for each weight on its own; zero where the input is always zero."""
        import torch

        blocks: Any = statistics[self.inverse]
        diagonal, values = flat(blocks), flat(weights) * flat(blocks.live)
        kept = diagonal > 0
        return shaped(torch.where(kept, values.square() / torch.where(kept, 2 * diagonal, 1.0), 0.0), weights)

    @property
    def select(self) -> Any:
        """Greedy selection, where it is asked for."""
        return self._eliminate if self.options.selection == "greedy" else None

    def _eliminate(
        self, weights: Tensors, statistics: Mapping[Any, Tensors], masks: Tensors, budget: int
    ) -> dict[str, Tensor]:
        """Eliminate down to the budget."""
        from functools import partial

        from prunekit_plugins._selection.greedy import greedy, shares
        from prunekit_plugins._selection.pattern import caps, refuse_more

        n, m, blocks = self.options.n, self.options.m, statistics[self.inverse]
        if m is not None:
            refuse_more(masks, budget, n, m, "prune.criterion")
        values = flat(weights) * flat(blocks.live)  # type: ignore[attr-defined]
        gone = greedy(
            blocks,  # type: ignore[arg-type]
            lambda chunk: chunk.at(values),
            flat(self.saliency(weights, statistics)),
            masks,
            {None: budget} if self.options.scope == "global" else shares(masks, budget),
            self.options.refresh,
            None if m is None else partial(caps, masks=masks, n=n, m=m),
            None if self.damps or not self.lam else 0.5 * self.lam * flat(weights).square(),
        )
        left = flat(masks).bool()
        left[gone] = False
        return shaped(left, masks)

    @property
    def update(self) -> Any:
        """New values for the survivors, where they are asked for."""
        return self._refit if self.options.update else None

    def _refit(
        self, weights: Tensors, statistics: Mapping[Any, Tensors], masks: Tensors
    ) -> dict[str, Tensor]:
        from prunekit_plugins._selection.reconstruction import refitted

        return refitted(statistics[self.inverse], weights, masks)  # type: ignore[arg-type]
