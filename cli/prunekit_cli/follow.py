"""``prunekit inspect --follow``: a run while it goes on; imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live

from prunekit.errors import ResultsError
from prunekit.records import Row
from prunekit.reports.spark import spark
from prunekit.reports.words import number, percent
from prunekit.results import open_results
from prunekit.results.claim import written
from prunekit_cli.console import table

_PERIOD = 1.0  # seconds between two looks
_PATIENCE = 10.0  # seconds that a file may be without an owner and unfinished: its run may be starting
_CURVES = (
    ("train loss", "train_loss"),
    ("valid loss", "valid_loss"),
    ("measured Δloss", "delta_loss"),
    ("predicted Δloss", "predicted_delta_loss"),
)


def follow(file: Path, screen: Console, sleep: Callable[[float], None] = time.sleep) -> Row:
    """Show a run until it ends.

    On a terminal the picture is redrawn; elsewhere every step is a line.

    Args:
        file: Its results.
        screen: Where to show it.
        sleep: Waits for so many seconds.

    Returns:
        Its last summary.

    Raises:
        ResultsError: If there is no such file, it is damaged, or nobody writes it and it is unfinished.
    """
    states = _states(file, sleep)
    if not screen.is_terminal:
        said = 0
        for summary in states:
            for step in summary["steps"][said:]:
                screen.print(_line(step))
            said = len(summary["steps"])
        return summary
    with Live(console=screen, auto_refresh=False, transient=True) as live:
        for summary in states:
            live.update(Group(*picture(summary, screen.encoding)), refresh=True)
    return summary


def _states(file: Path, sleep: Callable[[float], None]) -> Iterator[Row]:
    """Summaries, from now on, until one is the last."""
    alone = 0.0
    while True:
        # Asked first: an owner that ends in between has written the last word.
        owned = written(file)
        with open_results(file) as results:
            summary = results.summary
        yield summary
        if summary["status"] != "running":
            return
        alone = 0.0 if owned else alone + _PERIOD
        if alone > _PATIENCE:
            raise ResultsError(
                f"{file}: its run has died: nothing is writing it, and it ends unfinished at step {len(summary['steps'])}; "
                "continue it with prunekit run SPEC --resume"
            )
        sleep(_PERIOD)


def picture(summary: Row, encoding: str | None) -> Iterator[RenderableType]:
    """A run in some lines."""
    spec, steps = summary["spec"], summary["steps"]
    yield f"{spec['name']}: {summary['status']}"
    if not steps:
        yield "no step yet"
        return
    last = steps[-1]
    yield f"step {last['step']}, sparsity {percent(last['sparsity'], 3)}, {last['remaining']:,} weights left"
    rows = []
    for title, key in _CURVES:
        values = [step.get(key) for step in steps]
        if any(value is not None for value in values):
            rows.append([title, spark(values, encoding=encoding), number(values[0]), number(values[-1])])
    yield table(None, ["", "", "first", "now"], rows, left=2)


def _line(step: Row) -> str:
    text = f"step {step['step']}  sparsity {percent(step['sparsity'], 3)}"
    text += f"  train loss {number(step['train_loss'])}  Δloss {number(step['delta_loss'])}"
    return text
