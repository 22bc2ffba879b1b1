"""The diagonal of the empirical Fisher matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunekit import Options
from prunekit.statistics import SquaredColumns
from prunekit_plugins._curvature.options import Terms, fisher_columns

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.statistics import ForwardPass


class FisherOptions(Options):
    """Options.

    Attributes:
        terms: ``token``: each loss term has a gradient of its own; ``sequence``: all terms of an example together, as
            is usual for language models.
    """

    terms: Terms = "token"


class EmpiricalFisherDiagonal(SquaredColumns):
    """Σ over loss terms of the squared gradient of the term, over the loss's normaliser.

    With the given labels, unlike the Fisher matrix, which equals the GGN here. A loss term is an example
    for plain cross-entropy, a token for sequences, one output of an example for ``mse`` and
    ``bce_with_logits``. With ``terms: sequence`` the terms of an example are summed before they are squared, still over
    the loss's normaliser: what the tokens' gradients would give if they were independent, with one pass for each
    example. It vanishes where a network fits its labels exactly, which curvature does not.
    Reference: Kunstner, Hennig & Balles (2019).

    Cost per batch: one backward pass to the activations per loss term of an example.
    """

    name = "empirical_fisher_diagonal"
    Options = FisherOptions

    def columns(self, batch: ForwardPass) -> tuple[int, Iterator[Tensor]]:
        """The terms' gradients in the outputs, or their sums."""
        return fisher_columns(self.options.terms, batch)
