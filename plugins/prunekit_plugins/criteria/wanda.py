"""Pruning by weights and activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self, cast

from pydantic import Field, model_validator

from prunekit import Context, Criterion, Proposal, Request, Statistic
from prunekit.masks import apportion
from prunekit_plugins._curvature.cost import rows_and_inputs
from prunekit_plugins._selection.pattern import OptionalPattern
from prunekit_plugins.criteria._refit import moments, refit

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Statistics, Tensors
    from prunekit.masks import Layer
    from prunekit_plugins._curvature.grams import LayerGrams
    from prunekit_plugins._curvature.layer_gram import LayerBlocks

_PACE = 60  # operations of a product of matrices in the time in which a swap looks at one pair
_MOVED = 15  # a row swaps about one of so many inputs until nothing helps


class WandaOptions(OptionalPattern):
    """Options.

    Attributes:
        selection: ``rows`` takes the same share of every output row, and compares weights only within it;
            ``saliency`` leaves the choice to the selector.
        update: New values for the survivors; not part of the published method. ``true``: the least-squares solution for
            their mask, row by row, as ``obc`` does. ``cg``: ten steps of conjugate gradients towards it, which is far
            faster.
        swaps: How many pairs of a kept and a pruned weight each row may swap afterwards, the best at a time, where that
            lowers the error at its output with survivors as they were (SparseSwaps). Until no swap helps, a row takes
            about one for every 15 inputs. 0 is the published Wanda.
        n: Weights kept in every group of ``m`` along the input dimension, as in the selector ``nm``.
        m: Weights in a group.
    """

    update: bool | Literal["cg"] = False
    selection: Literal["rows", "saliency"] = "rows"
    swaps: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _swaps_are_within_rows(self) -> Self:
        if self.swaps and self.selection == "saliency":
            raise ValueError(
                "swaps has no meaning with selection saliency: a selector may want what a swap would undo; accepted: "
                "selection: rows, for patterns with n and m"
            )
        return self


class Wanda(Criterion):
    """|W_ij|·‖x_j‖₂, the norm taken over all examples and positions, up to one factor for the whole network.

    A row is what feeds one output: a unit of a linear layer, a channel of a convolution. A bias is one row.
    The inputs are those of the network as it is at the step; the authors' code prunes block after block, each
    with inputs from the pruned ones before. Nothing is predicted.

    With ``n`` and ``m``, the smallest of each group go; as long as a schedule has not come to the full pattern, the smallest
    of a row among these. With ``swaps``, masks are refined on the second moments G of a layer's inputs: what goes, d,
    costs ``½ dᵀGd``, and λ adds ``½λ‖d‖²``. Swaps stay within rows and groups; what went in earlier steps stays gone.
    References: Sun, Liu, Bair & Kolter (2024), section 3; Zimmer, Roux, Wagner, Hendrych & Pokutta (2025), «SparseSwaps»,
    arXiv 2512.10922.
    """

    name = "wanda"
    Options = WandaOptions
    options: WandaOptions
    predicts = False

    @property
    def requires(self) -> frozenset[Request]:
        """The inputs' second moments, and their inverses for the update; with λ see :meth:`required`."""
        return self.required(0.0)

    def required(self, lam: float) -> frozenset[Request]:
        """The same with λ as damping of the inverses."""
        update = self.options.update
        if self.options.swaps or update == "cg":
            grams = moments(lam if update else 0.0, exact=update is True)
            return frozenset({"input_second_moment", grams})
        if not update:
            return frozenset({"input_second_moment"})
        inverse = Statistic("inverse_layer", damping=lam, relative_damping=1e-8)
        return frozenset({"input_second_moment", inverse})

    @property
    def damps(self) -> bool:
        """λ is damping where survivors are adjusted."""
        return bool(self.options.update)

    @property
    def uses_selector(self) -> bool:
        """Where the masks come from saliencies."""
        return self.options.selection == "saliency"

    def check(self, layers: Sequence[Layer], budgets: Sequence[int]) -> None:
        """Refuse layers that do not fit the pattern, and a schedule that does not end with it."""
        self.options.check(layers, budgets)

    def cost(self, layer: Layer) -> tuple[float, int]:
        """Looking at all pairs of a row for each swap; of a row's pairs the cross terms, and as much to work in."""
        from prunekit_plugins._selection.swaps import PIECE

        if not self.options.swaps:
            return 0.0, 0
        count, rows, inputs = rows_and_inputs(layer)
        pairs = inputs**2 / 4
        swaps = min(self.options.swaps, -(-inputs // _MOVED))
        return count * rows * pairs * swaps * _PACE, max(PIECE, int(8 * pairs))

    def shares(self, layers: Sequence[Layer], gone: Sequence[int], budget: int) -> list[int] | None:
        """The same share of every layer, unless a selector chooses."""
        return None if self.uses_selector else apportion(budget, [layer.size for layer in layers], gone)

    def propose(self, context: Context) -> Proposal:
        """Masks row by row, or by the selector."""
        scores = self.scores(context)
        if self.uses_selector:
            masks = context.select(scores)
        else:
            masks = self._swapped(_by_row(scores, context, self.options), context)
        return Proposal(masks, self.update(context.weights, context.statistics, masks))

    def saliency(self, weights: Tensors, statistics: Statistics) -> dict[str, Tensor]:
        """|W|·‖x‖: each weight's size times the norm of the input that it multiplies."""
        moment = statistics["input_second_moment"]
        return {k: w.abs() * moment[k].sqrt() for k, w in weights.items()}

    def update(self, weights: Tensors, statistics: Statistics, masks: Tensors) -> dict[str, Tensor] | None:
        """The least-squares solution for these masks, row by row."""
        from prunekit_plugins._selection.reconstruction import refitted

        if not self.options.update:
            return None
        if self.options.swaps or self.options.update == "cg":
            return refit(self.options.update, weights, statistics, masks)
        return refitted(cast("LayerBlocks", statistics["inverse_layer"]), weights, masks)

    def _swapped(self, masks: dict[str, Tensor], context: Context) -> dict[str, Tensor]:
        """The masks after as many swaps as are asked for."""
        from prunekit_plugins._selection.swaps import swapped

        if not self.options.swaps:
            return masks
        grams = cast("LayerGrams", context.statistics["input_gram"])
        return {
            name: swapped(
                grams.grams[name],
                context.weights[name],
                context.masks[name],
                mask,
                self.options.swaps,
                context.lam,
                context.spared.get(name),
                self.options.m,
            )
            for name, mask in masks.items()
        }


def _by_row(scores: Tensors, context: Context, pattern: OptionalPattern) -> dict[str, Tensor]:
    """Each layer loses the same share, and each of its rows, by largest remainder; earlier rows first on ties.

    Rows of one length have equal remainders: apportioned over all layers at once, the first layers would be rounded up
    and the last ones down.
    """
    import torch

    from prunekit.masks import smallest_of_rows
    from prunekit_plugins._selection.greedy import layer_budgets

    held = _held(scores, context, pattern)
    shares = context.shares or layer_budgets(context.masks, context.budget, held)
    layers = {layer.name: layer for layer in context.layers}
    chosen = {}
    for name, mask in context.masks.items():
        rows = _rows(mask, layers[name])
        ranked = _rows(scores[name], layers[name])
        most = torch.full((len(rows),), rows.shape[1], device=rows.device)
        if name in held:
            spared = _rows(held[name], layers[name]) & rows
            ranked = ranked.masked_fill(spared, float("inf"))
            most -= spared.sum(1)
        counts = _counts(rows, most.tolist(), shares[name])
        gone = smallest_of_rows(
            ranked.detach().masked_fill(~rows, -torch.inf), torch.tensor(counts, device=rows.device)
        )
        chosen[name] = _from_rows(~gone, layers[name])
    return chosen


def _held(scores: Tensors, context: Context, pattern: OptionalPattern) -> Tensors:
    """What stays as long as there is something else; with a pattern, all but the ``m - n`` smallest of each group."""
    import torch

    from prunekit_plugins._selection.pattern import first_to_go, refuse_more

    n, m = pattern.n, pattern.m
    if n is None or m is None:
        return context.spared
    refuse_more(context.layers, context.masks, context.budget, n, m, "prune.criterion")
    held = {}
    for layer in context.layers:
        rank = scores[layer.name].masked_fill(~context.masks[layer.name], -torch.inf)
        if layer.name in context.spared:
            rank = rank.masked_fill(context.spared[layer.name] & context.masks[layer.name], torch.inf)
        held[layer.name] = ~first_to_go(rank, layer, n, m)
    return held


def _counts(kept: Tensor, most: list[int], share: int) -> list[int]:
    """Weights of each row of a layer that are pruned afterwards, no more than ``most`` while that is enough."""
    sizes, gone = [kept.shape[1]] * len(kept), (~kept).sum(1).tolist()
    return apportion(share, sizes, gone, most if sum(most) >= share else None)


def _rows(tensor: Tensor, layer: Layer) -> Tensor:
    """``[rows, weights of a row]``; a vector is one row."""
    if tensor.ndim < 2:
        return tensor.reshape(1, -1)
    axis = _inputs(layer)
    if axis is not None:
        moved = tensor.movedim(axis, -1)
        return moved.reshape(-1, moved.shape[-1])
    return tensor.movedim(layer.output_axis or 0, 0).flatten(1)


def _from_rows(rows: Tensor, layer: Layer) -> Tensor:
    """Undo :func:`_rows`."""
    shape, inputs = layer.shape, _inputs(layer)
    if len(shape) < 2:
        return rows.view(shape)
    axis = (layer.output_axis or 0) if inputs is None else inputs
    others = [n for i, n in enumerate(shape) if i != axis]
    if inputs is None:
        return rows.view(shape[axis], *others).movedim(0, axis).contiguous()
    return rows.view(*others, shape[axis]).movedim(-1, axis).contiguous()


def _inputs(layer: Layer) -> int | None:
    """The axis of a row's weights, of stacked matrices; ``None`` where a row is all but the axis of outputs."""
    return None if {layer.input_axis, layer.output_axis} == {0, 1} else layer.input_axis
