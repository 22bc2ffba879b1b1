"""The diagonal of the empirical Fisher matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunekit.statistics import SquaredColumns

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.statistics import ForwardPass


class EmpiricalFisherDiagonal(SquaredColumns):
    """Σ over loss terms of the squared gradient of the term, over the loss's normaliser.

    With the given labels, unlike the Fisher matrix, which equals the GGN here. A loss term is an example
    for plain cross-entropy, a token for sequences, one output of an example for ``mse`` and
    ``bce_with_logits``. It vanishes where a network fits its labels exactly, which curvature does not.
    Reference: Kunstner, Hennig & Balles (2019).

    Cost per batch: one backward pass to the activations per loss term of an example.
    """

    name = "empirical_fisher_diagonal"

    def columns(self, batch: ForwardPass) -> tuple[int, Iterator[Tensor]]:
        """The terms' gradients in the outputs."""
        loss, outputs = batch.problem.loss, batch.outputs.detach()
        return loss.term_count(outputs, batch.targets), loss.term_gradients(outputs, batch.targets)
