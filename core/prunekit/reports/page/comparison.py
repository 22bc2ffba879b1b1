"""The page of runs side by side."""

from __future__ import annotations

from functools import partial

from prunekit.reports.compare import Comparison
from prunekit.reports.compare_figure import fill
from prunekit.reports.compare_tables import tables
from prunekit.reports.page.markup import anchor, folded, table
from prunekit.reports.page.page import page
from prunekit.reports.page.sections import Section

_MANY = 30  # rows, from which a table is folded


def of_comparison(comparison: Comparison) -> str:
    """A page with the curves of all runs, and every table."""
    first = Section("curves", "Loss over sparsity")
    first.draw(
        "curves", partial(fill, comparison), "Training loss over sparsity, and what each run ends with"
    )
    parts = [first]
    for one in tables(comparison):
        content = table(one.columns, one.rows, left=one.left)
        if len(one.rows) > _MANY:
            content = folded(f"{len(one.rows)} rows", content)
        parts.append(Section(anchor(one.title), one.title, content))
    return page(f"{len(comparison.runs)} runs", parts, {})
