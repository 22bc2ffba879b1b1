"""Scores of classes and labels, for metrics that need them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit import SpecError

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Loss


def predictions(metric: str, outputs: Tensor, targets: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """Scores ``[predictions, classes]`` and labels ``[predictions]`` of what counts.

    Raises:
        SpecError: If the loss has none.
    """
    found = loss.predictions(outputs, targets)
    if found is None:
        raise SpecError(
            f"metric {metric!r} compares classes, which loss {loss.name!r} does not have; use it with cross_entropy, "
            "token_cross_entropy or causal_lm"
        )
    return found
