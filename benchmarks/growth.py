"""How the exact GGN diagonal's cost grows, and what counting multiplications predicts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

FEATURES = 784


def predicted(hidden: Sequence[int], classes: int) -> float:
    """Multiplications of the GGN diagonal over those of a gradient, for a chain of linear layers.

    With F those of one forward pass and B those of sending a gradient back to the activations (all layers
    but the first): a gradient takes F + B, and F for the weights. The GGN diagonal takes F, then
    (classes − 1)·B, since the Hessian of cross-entropy in the logits has that rank, and F for the products of
    squares, which serve all classes together. Per example, so the number of examples does not enter.
    """
    layers = [a * b for a, b in pairwise([FEATURES, *hidden, classes])]
    forward, back = sum(layers), sum(layers[1:])
    return (2 * forward + (classes - 1) * back) / (2 * forward + back)


def cases(quick: bool) -> list[list[tuple[str, tuple[int, ...], int, int]]]:
    """Groups in which one thing varies, of label, hidden units, classes and examples."""
    classes = (10, 100) if quick else (10, 100, 1000)
    return [
        [(f"{c} classes", (300, 100), c, 250) for c in classes],
        [(f"{n} examples", (300, 100), 10, n) for n in (250, 500, 1000, 2000)],
        [(f"2 × {w} units", (w, w), 10, 500) for w in (64, 256, 1024)],
        [(f"{d} × 256 units", (256,) * d, 10, 500) for d in (1, 2, 4, 8)],
    ]
