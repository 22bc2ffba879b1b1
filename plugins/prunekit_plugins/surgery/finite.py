"""Networks that overflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit import RunError

if TYPE_CHECKING:
    from prunekit.estimation import ForwardPass


def refuse_non_finite(statistic: str, batch: ForwardPass) -> None:
    """Refuse outputs that are not finite: what is made of them looks like a layer that is used in an unknown way.

    Raises:
        RunError: Saying so.
    """
    if batch.others and not bool(batch.outputs.isfinite().all()):
        raise RunError(f"{statistic}: the network's outputs are not finite at these weights")
