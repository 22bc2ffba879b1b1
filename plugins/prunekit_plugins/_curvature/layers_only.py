"""Statistics that are made from what enters and leaves layers, and have no fallback."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit import RunError, UnsupportedError

if TYPE_CHECKING:
    from prunekit.statistics import ForwardPass


def refuse_other_uses(statistic: str, batch: ForwardPass, by_example: bool = True) -> None:
    """Refuse parameters that are used in another way than as the weight or bias of a layer.

    Args:
        statistic: Its name, for the message.
        batch: With its uses.
        by_example: Whether examples have to be told apart.

    Raises:
        UnsupportedError: Naming them.
        RunError: If the network's outputs are not finite: then every layer looks as if it were used so.
    """
    others = batch.others if by_example else batch.unseen
    if not others:
        return
    if not bool(batch.outputs.isfinite().all()):
        raise RunError(f"{statistic}: the network's outputs are not finite at these weights")
    how = ", one example after another," if by_example else ""
    raise UnsupportedError(
        f"{statistic}: {', '.join(others)} does more than multiply inputs{how} in linear or convolution layers or "
        "other matrix products, which is all that this statistic covers; exclude it (prunable), or choose another criterion"
    )
