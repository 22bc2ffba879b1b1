"""Layer-wise pruning column by column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from prunekit import Criterion, Statistic
from prunekit_plugins._selection.pattern import OptionalPattern
from prunekit_plugins.criteria._flat import who

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.masks.weights import Layer
    from prunekit_plugins._selection.columns import Columns

Tensors = Mapping[str, "Tensor"]


class SparseGPTOptions(OptionalPattern):
    """Options.

    Attributes:
        damping: Multiple of the identity added to a layer's H; λ is added to it.
        relative_damping: The same in units of the layer's mean diagonal of H.
        selection: ``sweep`` chooses on the way, as published; ``saliency`` ranks all at once and leaves the choice to the
            selector.
        scope: Of the sweep's choice: ``layerwise``, each layer loses the same share; ``global``, what each layer loses is
            found by ranking the saliencies of all.
        block_size: Columns for which the choice is made at once, and after which those to the right are brought up
            to date; with a pattern, raised to whole groups.
        update: Adjust the surviving weights.
        refit: Once the masks are chosen, give the survivors the least-squares solution in place of the sweep's; it
            has ``damping``, and 1e-8 in place of ``relative_damping``, which on correlated inputs is far from least.
        n: Weights kept of every group of ``m`` along the input dimension, as in the selector ``nm``.
        m: Weights of a group.
    """

    damping: float = Field(default=0, ge=0)
    relative_damping: float = Field(default=0.01, ge=0)
    selection: Literal["sweep", "saliency"] = "sweep"
    scope: Literal["layerwise", "global"] = "layerwise"
    block_size: int = Field(default=128, ge=1)
    update: bool = True
    refit: bool = False

    @model_validator(mode="after")
    def _refit_is_an_update(self) -> Self:
        if self.refit and not self.update:
            raise ValueError("refit has no meaning with update false")
        if self.m is not None and self.scope == "global":
            raise ValueError("scope global has no meaning with n and m, which ask the same of every layer")
        return self


class SparseGPT(Criterion):
    """A layer's columns from left to right, each made up for by those to its right: SparseGPT.

    Within each block of columns the smallest ``w_j² / U_jj²`` go, ``UᵀU = H⁻¹`` and w as the blocks before have left
    it. Every block of a layer's columns loses the layer's share: exactly so many, where the
    published code takes a threshold and with it more or fewer if scores repeat. With ``n`` and ``m``, a group of
    inputs is chosen when the sweep reaches it; as long as a schedule has not come to the full pattern, by blocks.
    For convolutions a column is an input channel at one place of the kernel; with a pattern the columns are taken
    group by group. Weights pruned before stay at zero: what the columns before would put on them is passed on as an
    error of their own, as published.

    The method is layer-wise and models no loss of the task, so nothing is predicted. The inputs are those of the
    network as it is at the step, where the authors' code prunes block after block, each with inputs from those before.
    Reference: Frantar & Alistarh (2023), algorithm 1.
    """

    name = "sparsegpt"
    Options = SparseGPTOptions
    damps = True

    @property
    def inverse(self) -> Statistic:
        """The statistic with H and its inverse."""
        options = self.options
        damping, relative = options.damping + self.lam, options.relative_damping
        return Statistic("inverse_layer", damping=damping, relative_damping=relative, inputs="all")

    @property
    def requires(self) -> frozenset[str | Statistic]:  # type: ignore[override]
        """H and its inverse."""
        return frozenset({self.inverse})

    def check(self, layers: Sequence[Layer], budgets: Sequence[int]) -> None:
        """Refuse layers that do not fit the pattern, and a schedule that does not end with it."""
        self.options.check(layers, budgets)

    def saliency(self, weights: Tensors, statistics: Mapping[Any, Tensors]) -> dict[str, Tensor]:
        """``w_j² / (2 U_jj²)``: what it costs to remove one weight if the columns to its right make up for it."""
        found = {}
        for name, w in weights.items():
            layer = self._layer(name, weights, statistics)
            diagonal = layer.upper.diagonal(dim1=1, dim2=2).unsqueeze(1)
            scores = (layer.values / diagonal).square() / 2 * layer.live.unsqueeze(1)
            found[name] = layer.undo(scores, w.shape)
        return found

    @property
    def select(self) -> Any:
        """The sweep's choice, where it is asked for."""
        return self._sweep if self.options.selection == "sweep" else None

    def _sweep(
        self, weights: Tensors, statistics: Mapping[Any, Tensors], masks: Tensors, budget: int
    ) -> dict[str, Tensor]:
        """Sweep every layer, choosing what goes."""
        from prunekit_plugins._selection.columns import Quotas, sweep
        from prunekit_plugins._selection.pattern import refuse_more

        n, m = self.options.n, self.options.m
        if m is not None:
            refuse_more(masks, budget, n, m, "prune.criterion")
        chosen, values = {}, {}
        for name, share in self._shares(weights, statistics, masks, budget).items():
            mask, layer = masks[name], self._layer(name, weights, statistics)
            quotas = Quotas(
                ~layer.arranged(mask), share, layer.order, self._width, None if m is None else (n, m)
            )
            after, gone = sweep(layer, self._width, quotas.step, quotas)
            chosen[name] = ~layer.undo(gone, mask.shape)
            values[name] = layer.undo(after, mask.shape).to(weights[name].dtype)
        blocks: Any = statistics[self.inverse]
        blocks.remember(who(self), (weights, chosen), values)  # the update of the step asks for them
        return chosen

    def _shares(
        self, weights: Tensors, statistics: Mapping[Any, Tensors], masks: Tensors, budget: int
    ) -> Mapping[str, int]:
        """How many weights of each layer are pruned afterwards."""
        from prunekit.masks.select import prune_smallest
        from prunekit_plugins._selection.greedy import shares

        if self.options.scope == "layerwise":
            return shares(masks, budget)
        left = prune_smallest(self.saliency(weights, statistics), masks, budget)
        return {name: mask.numel() - int(mask.count_nonzero()) for name, mask in left.items()}

    @property
    def update(self) -> Any:
        """New values for the survivors, where they are asked for."""
        if not self.options.update:
            return None
        return self._refit if self.options.refit else self._swept

    def _refit(
        self, weights: Tensors, statistics: Mapping[Any, Tensors], masks: Tensors
    ) -> dict[str, Tensor]:
        from prunekit_plugins._selection.reconstruction import least_squares

        return least_squares(statistics[self.inverse], weights, masks)  # type: ignore[arg-type]

    def _swept(
        self, weights: Tensors, statistics: Mapping[Any, Tensors], masks: Tensors
    ) -> dict[str, Tensor]:
        """The sweep's values for any masks."""
        from prunekit_plugins._selection.columns import given, sweep

        def compute() -> dict[str, Tensor]:
            found = {}
            for name, w in weights.items():
                layer = self._layer(name, weights, statistics)
                after, _ = sweep(layer, self._width, self._width, given(~layer.arranged(masks[name])))
                found[name] = layer.undo(after, w.shape).to(w.dtype)
            return found

        blocks: Any = statistics[self.inverse]
        return blocks.remembered(who(self), (weights, masks), compute)  # type: ignore[no-any-return]

    @property
    def _width(self) -> int:
        m = self.options.m or 1
        return int(-(-self.options.block_size // m) * m)

    def _layer(self, name: str, weights: Tensors, statistics: Mapping[Any, Tensors]) -> Columns:
        from prunekit_plugins._selection.columns import Columns

        blocks: Any = statistics[self.inverse]
        return Columns(blocks.family(name), weights[name], blocks.damping, self.options.m)
