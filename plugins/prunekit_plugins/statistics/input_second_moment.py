"""How large the inputs are that a weight multiplies."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from prunekit import Estimator
from prunekit_plugins._curvature.layers_only import refuse_other_uses

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from prunekit.statistics import ForwardPass, Problem, Use


class InputSecondMoment(Estimator):
    """Σ x² over the inputs x that a weight multiplies, at all positions of all examples, per loss normaliser.

    Positions are tokens, pixels of a convolution's output, second uses of the weight; a padded input counts
    as the zero that it is, and a product that a transposed convolution crops does not count. One value per
    weight; the weights of an input share it where they meet it equally often. The input of a bias is one.

    Cost per batch: a square of every layer's input, and a sum over the examples before anything is unfolded.
    """

    name = "input_second_moment"
    captures = True
    by_example = False
    of_inputs = True

    def start(self, problem: Problem) -> None:
        """Begin with zeros, to which every batch adds the squares of its inputs."""
        self._sums = problem.zeros()

    def add(self, batch: ForwardPass) -> None:
        """Add the squares of the batch.

        Raises:
            UnsupportedError: If a parameter is used in another way than as a layer's weight or bias.
        """
        refuse_other_uses(self.name, batch, by_example=False)
        for name, uses in batch.seen.items():
            for use in uses:
                self._sums[name] += _squares(use, self._sums[name].shape, self._sums[name].dtype)

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Divide by the normaliser; zeros for a parameter that was not used."""
        return {name: total.div_(normaliser) for name, total in self._sums.items()}


def _squares(use: Use, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The sum for one use over the batch, in the parameter's shape."""
    import torch

    from prunekit.statistics import inward, outward, placed

    geometry = use.geometry
    if geometry.bias:
        squares = inward(use).to(dtype).sum(0)
    elif geometry.batched:
        squares = use.input.to(dtype).square().sum(1).unsqueeze(2)
    else:
        # Unfolding only moves numbers, so the examples' squares can be added up before it.
        together = use.input.to(dtype).square().sum(0, keepdim=True)
        squares = inward(replace(use, input=together)).squeeze(0)
    groups, inner, _ = squares.shape  # and positions
    if use.part is None and geometry.transposed and not geometry.bias:
        one = use.input.new_ones(1, *use.output_shape[1:], dtype=dtype)
        total = torch.einsum("gbt,gat->gba", outward(use, one).squeeze(0), squares)
    else:
        units = shape.numel() // (groups * inner) if use.part is None else use.part.units
        total = squares.sum(2).unsqueeze(1).expand(groups, units, inner)
    return placed(use, total, shape)
