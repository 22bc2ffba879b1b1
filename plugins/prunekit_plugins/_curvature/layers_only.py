"""Statistics that are made from what enters and leaves layers, and have no fallback."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit import RunError, UnsupportedError

if TYPE_CHECKING:
    from prunekit.statistics import ForwardPass


def refuse_other_uses(statistic: str, batch: ForwardPass) -> None:
    """Refuse parameters that are used in another way than as the weight or bias of a layer.

    Raises:
        UnsupportedError: Naming them.
        RunError: If the network's outputs are not finite: then every layer looks as if it were used so.
    """
    if not batch.others:
        return
    if not bool(batch.outputs.isfinite().all()):
        raise RunError(f"{statistic}: the network's outputs are not finite at these weights")
    raise UnsupportedError(
        f"{statistic}: {', '.join(batch.others)} not only multiplies inputs, one example after another, in linear or "
        "convolution layers, which this statistic needs; exclude it (prunable), or choose another criterion"
    )
