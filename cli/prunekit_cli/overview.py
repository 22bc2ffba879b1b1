"""What :mod:`prunekit.reports.overview` says of a run, for a terminal; shared by ``run`` and ``inspect``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType

from prunekit.reports import overview as plain
from prunekit.reports.plain_table import PlainTable
from prunekit_cli import console

if TYPE_CHECKING:
    from prunekit.results import Results


def overview(results: Results, everything: bool = False) -> Iterator[RenderableType]:
    """Head line, networks side by side, steps, probes; of many steps some, unless everything is wanted."""
    return _rich(plain.overview(results, everything, console.stdout().encoding))


def layers(results: Results) -> Iterator[RenderableType]:
    """The sparsity of every layer after the last step."""
    return _rich(plain.layers(results))


def probe(results: Results, label: str) -> Iterator[RenderableType]:
    """Everything that one probe found.

    Raises:
        ResultsError: If the run has no such probe.
    """
    return _rich(plain.probe(results, label))


def _rich(parts: Iterable[PlainTable | str]) -> Iterator[RenderableType]:
    for part in parts:
        if isinstance(part, str):
            yield part
        else:
            yield console.table(part.title, part.columns, part.rows, left=part.left, less=part.less)
