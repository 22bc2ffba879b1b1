"""Pruning by weights and activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from prunekit import Criterion, Options, Statistic
from prunekit.masks.apportion import apportion

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]


class WandaOptions(Options):
    """Options.

    Attributes:
        selection: ``rows`` takes the same share of every output row, and compares weights only within it;
            ``saliency`` leaves the choice to the selector.
        update: Give the survivors the least-squares solution for their mask, row by row, as ``obc`` does; not part of
            the published method.
    """

    update: bool = False
    selection: Literal["rows", "saliency"] = "rows"


class Wanda(Criterion):
    """|W_ij|·‖x_j‖₂, the norm taken over all examples and positions, up to one factor for the whole network.

    A row is what axis 0 of a weight indexes, which for linear layers and convolutions are the outputs; for
    transposed convolutions it is the inputs, as a criterion cannot see which a layer is. A bias is one row.
    The inputs are those of the network as it is at the step; the authors' code prunes block after block, each
    with inputs from the pruned ones before. Nothing is predicted.
    Reference: Sun, Liu, Bair & Kolter (2024), section 3.
    """

    name = "wanda"
    Options = WandaOptions

    @property
    def inverse(self) -> Statistic:
        """What the update needs."""
        return Statistic("inverse_layer", damping=self.lam, relative_damping=1e-8)

    @property
    def requires(self) -> frozenset[str | Statistic]:  # type: ignore[override]
        """The inputs' second moments, and their inverses for the update."""
        return frozenset(
            {"input_second_moment", self.inverse} if self.options.update else {"input_second_moment"}
        )

    @property
    def damps(self) -> bool:  # type: ignore[override]
        """λ is damping where survivors are adjusted."""
        return bool(self.options.update)

    def saliency(self, weights: Tensors, statistics: Mapping[Any, Tensors]) -> dict[str, Tensor]:
        """|W|·‖x‖ per weight."""
        moment = statistics["input_second_moment"]
        return {k: w.abs() * moment[k].sqrt() for k, w in weights.items()}

    @property
    def select(self) -> Any:
        """Row by row, where it is asked for."""
        return self._by_row if self.options.selection == "rows" else None

    @property
    def update(self) -> Any:
        """New values for the survivors, where they are asked for."""
        return self._refit if self.options.update else None

    def _refit(
        self, weights: Tensors, statistics: Mapping[Any, Tensors], masks: Tensors
    ) -> dict[str, Tensor]:
        from prunekit_plugins._selection.reconstruction import refitted

        return refitted(statistics[self.inverse], weights, masks)  # type: ignore[arg-type]

    def _by_row(
        self, weights: Tensors, statistics: Mapping[Any, Tensors], masks: Tensors, budget: int
    ) -> dict[str, Tensor]:
        """The rows' shares differ by rounding only: by largest remainder, earlier rows first on ties."""
        from prunekit.pruning.step import saliencies

        # With the λ term, and without values that cannot be ranked.
        found = saliencies(self, weights, statistics, masks)
        kept = {name: _rows(mask) for name, mask in masks.items()}
        gone = {name: rows.shape[1] - rows.sum(1) for name, rows in kept.items()}
        sizes = [rows.shape[1] for rows in kept.values() for _ in range(len(rows))]
        lower = [count for counts in gone.values() for count in counts.tolist()]
        shares = apportion(budget, sizes, lower)
        chosen, start = {}, 0
        for name, rows in kept.items():
            counts = gone[name].new_tensor(shares[start : start + len(rows)])
            start += len(rows)
            chosen[name] = _prune_smallest(_rows(found[name]), rows, counts).view(masks[name].shape)
        return chosen


def _rows(tensor: Tensor) -> Tensor:
    """``[rows, weights of a row]``; a vector is one row."""
    return tensor.flatten(1) if tensor.ndim > 1 else tensor.reshape(1, -1)


def _prune_smallest(scores: Tensor, kept: Tensor, counts: Tensor) -> Tensor:
    """The mask with ``counts[i]`` weights of row i pruned; those already gone first, then by score and index."""
    import torch

    order = scores.detach().masked_fill(~kept, -torch.inf).argsort(dim=1, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device)
    survive = places >= counts.unsqueeze(1)
    return torch.empty_like(kept).scatter_(1, order, survive)
