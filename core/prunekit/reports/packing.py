"""Pruned weights in forms that leave the zeros out; no torch.

``csr``: each matrix by rows. ``2:4``: the two values of every four along the inputs, and where they stand.
``compressed-tensors``: the bitmask form of that package, which its readers up to 0.12 unpack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from prunekit.errors import SpecError

Arrays = Mapping[str, np.ndarray]


def csr(name: str, weight: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Compressed rows ``[outputs, everything else]``, as torch and SciPy take them, with indices as int64."""
    rows = weight.reshape(len(weight), -1)
    kept = rows != 0
    counts = kept.sum(1)
    yield f"{name}.crow_indices", np.concatenate([[0], counts.cumsum()]).astype(np.int64)
    yield f"{name}.col_indices", kept.nonzero()[1].astype(np.int64)
    yield f"{name}.values", rows[kept]
    yield f"{name}.shape", np.array(weight.shape, dtype=np.int64)


def two_of_four(name: str, weight: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Values ``[rows, inputs / 2]``, and a byte for every four inputs: the places of the two, two bits each, lower first.

    Raises:
        SpecError: If more than two of four are left, along either axis that the inputs may be on.
    """
    for axis in (1, 0):
        moved = np.moveaxis(weight, axis, -1)
        rows = np.ascontiguousarray(moved).reshape(-1, moved.shape[-1])
        if rows.shape[1] % 4:
            continue
        fours = rows.reshape(len(rows), -1, 4)
        if ((fours != 0).sum(-1) > 2).any():
            continue
        # Of fours with fewer, zeros fill up, the last first.
        order = np.argsort(fours == 0, axis=-1, kind="stable")[..., :2]
        order.sort(axis=-1)
        values = np.take_along_axis(fours, order, -1)
        yield f"{name}.values", values.reshape(len(rows), -1)
        yield f"{name}.indices", (order[..., 0] | order[..., 1] << 2).astype(np.uint8)
        yield f"{name}.shape", np.array(weight.shape, dtype=np.int64)
        yield f"{name}.axis", np.array(axis, dtype=np.int64)
        return
    raise SpecError(
        f"--format 2:4: {name} has more than two weights left of some four along its inputs; prune it with the selector nm "
        "(n: 2, m: 4), or take csr"
    )


def bitmask(name: str, weight: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Values in a row, and a bit for every weight."""
    kept = weight != 0
    counts = kept.sum(-1)
    yield f"{name}.shape", np.array(weight.shape, dtype=np.int64)
    yield f"{name}.compressed", weight[kept]
    yield f"{name}.bitmask", np.packbits(kept, axis=-1, bitorder="little")
    yield f"{name}.row_offsets", (counts.cumsum(0) - counts).astype(np.int64)


FORMATS: Mapping[str, Callable[[str, np.ndarray], Iterator[tuple[str, np.ndarray]]] | None] = {
    "dense": None,
    "csr": csr,
    "2:4": two_of_four,
    "compressed-tensors": bitmask,
}


def packed(weights: Arrays, pruned: Arrays, form: str) -> dict[str, np.ndarray]:
    """All tensors of a network, its pruned matrices in another form.

    Args:
        weights: By name.
        pruned: What is pruned; of other names nothing is changed.
        form: One of :data:`FORMATS`.

    Raises:
        SpecError: If there is no such form, or a matrix does not have it.
    """
    if form not in FORMATS:
        raise SpecError(f"--format {form}: accepted are {', '.join(FORMATS)}")
    pack = FORMATS[form]
    found: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        if pack is None or name not in pruned or weight.ndim < 2:
            found[name] = weight
        else:
            found |= dict(pack(name, weight))
    return found
