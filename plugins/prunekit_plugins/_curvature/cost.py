"""What an inverse will take, told before it is begun."""

from __future__ import annotations

from collections.abc import Sequence

from prunekit import UnsupportedError
from prunekit.masks import Layer
from prunekit.units import memory_option, readable_bytes

_SPEED = 2e10  # floating-point operations per second in factorisations: an order of magnitude, for a CPU
_WORTH = 1.0  # seconds below which nobody wants to know


def cost_notice(statistic: str, memory: float, operations: float) -> str | None:
    """Memory and time of a step at the first level, in words; ``None`` if it is over in no time.

    Args:
        statistic: Its name.
        memory: Bytes.
        operations: Floating-point operations of its inverses, without the passes over the data.
    """
    seconds = operations / _SPEED
    if seconds < _WORTH:
        return None
    return (
        f"{statistic}: about {readable_bytes(memory)} and {seconds:,.0f} s on a CPU for the inverses of all weights, "
        "less for later steps"
    )


def layer_matrices(layer: Layer) -> tuple[int, int]:
    """How many matrices a layer has as far as its axes tell, and their inputs; groups of a convolution are not known."""
    if layer.output_axis != 0 and layer.input_axis is not None:
        inputs, outputs = layer.shape[layer.input_axis], layer.shape[layer.output_axis or 0]
        return 1 if layer.output_axis is None else layer.size // max(1, inputs * outputs), inputs
    return 1, layer.size // layer.shape[0] if layer.shape else 1


def refuse_transposed(statistic: str, layers: Sequence[Layer]) -> None:
    """Refuse transposed convolutions.

    Raises:
        UnsupportedError: Naming the first.
    """
    for layer in layers:
        if (layer.input_axis, layer.output_axis) == (0, 1) and len(layer.shape) > 2:
            raise transposed(statistic, layer.name)


def transposed(statistic: str, name: str) -> UnsupportedError:
    """The error for a transposed convolution."""
    return UnsupportedError(
        f"{statistic}: {name} belongs to a transposed convolution, whose outputs do not all see the same inputs; "
        "exclude it (prunable), or choose another criterion"
    )


def too_much(
    statistic: str, needed: int, layer: str, inputs: int, memory: int, per_entry: int
) -> UnsupportedError:
    """The error for matrices that do not fit.

    Args:
        statistic: Its name.
        needed: Bytes that all layers together take.
        layer: One of the largest.
        inputs: Of it.
        memory: Bytes there are.
        per_entry: Bytes for each entry of the matrix of a layer alone.
    """
    most = int((memory / per_entry) ** 0.5)
    return UnsupportedError(
        f"{statistic}: {layer} has {inputs:,} inputs, and all layers together take {readable_bytes(needed)}; the "
        f"memory budget is {readable_bytes(memory)}, in which one layer of {most:,} inputs fits. Raise it (memory: "
        f"{memory_option(needed)}), prune block by block (sequential), or prune fewer layers (prunable)"
    )


def rows_and_inputs(layer: Layer) -> tuple[int, int, int]:
    """How many matrices a layer has as far as its axes tell, with the rows and inputs of each."""
    count, inputs = layer_matrices(layer)
    return count, layer.size // max(1, count * inputs), inputs
