"""Tables of `records.py` in Markdown: means over the draws of the examples, ± their standard deviation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from record_rows import Network

COLUMNS = {
    "accuracy": ("test accuracy, %", 2),
    "train": ("Δ training loss", 4),
    "heldout": ("Δ held-out loss", 4),
    "seconds": ("CPU s", 1),
    "passes": ("passes", 1),
    "mib": ("MiB", 0),
}
"""Key of a figure to its title and decimals; spreads are shown of those with more than one."""

Found = dict[str, Any]


def show(
    name: str, network: Network, kept: Mapping[str, Sequence[Found]], sparsities: Sequence[float], draws: int
) -> None:
    """Print everything that is kept of the first draws."""
    print(f"\n## {name}\n")
    print("\n".join(_accuracies(network, kept, sparsities, draws)))
    for sparsity in sparsities:
        print(f"\n### {name} at {sparsity:g}\n")
        print("\n".join(_figures(kept, sparsity, draws)))


def _accuracies(
    network: Network, kept: Mapping[str, Sequence[Found]], sparsities: Sequence[float], draws: int
) -> Iterator[str]:
    """Test accuracies of all sparsities side by side, the published ones first."""
    yield from _head("test accuracy, %", [f"{s:g}" for s in sparsities])
    for name, figures in network.published.items():
        known = dict(zip(network.sparsities, figures, strict=True))
        yield _line(f"{name}, published", [f"{known[s]:.2f}" if s in known else "" for s in sparsities])
    for row, found in kept.items():
        cells = [_cell([f["accuracy"] for f in _of(found, s, draws)], 2) for s in sparsities]
        if any(cells):
            yield _line(f"`{row}`", cells)


def _figures(kept: Mapping[str, Sequence[Found]], sparsity: float, draws: int) -> Iterator[str]:
    """One sparsity's table."""
    yield from _head("row", [title for title, _ in COLUMNS.values()] + ["draws"])
    for row, found in kept.items():
        here = _of(found, sparsity, draws)
        if here:
            cells = [_cell([f[key] for f in here], digits) for key, (_, digits) in COLUMNS.items()]
            yield _line(f"`{row}`", [*cells, str(len(here))])


def _of(found: Sequence[Found], sparsity: float, draws: int) -> list[Found]:
    return [f for f in found if f["sparsity"] == sparsity and f["draw"] < draws]


def _cell(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 and digits > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def _head(first: str, titles: Sequence[str]) -> Iterator[str]:
    yield _line(first, titles)
    yield "|---" + "|---:" * len(titles) + "|"


def _line(first: str, cells: Sequence[str]) -> str:
    return "| " + " | ".join([first, *cells]) + " |"
