"""Where output goes: results to stdout, everything else to stderr, plain text when not a terminal."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from prunekit.records import Plain
from prunekit.visible import visible, visible_name
from prunekit_cli.failures import of_plugins

_PLAIN_WIDTH = 200
_format_warning = warnings.formatwarning


class Screen(Console):
    """A console on which no text acts: names, messages and what else is shown may come from any file."""

    def render_str(self, text: str, **how: Any) -> Text:
        """Every text that is printed, also in a table, comes by here."""
        return super().render_str(visible(text), **how)


def stdout() -> Console:
    """The console for results."""
    return _console(stderr=False)


def stderr(quiet: bool = False) -> Console:
    """For progress and messages."""
    return _console(stderr=True, quiet=quiet)


def warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as it is shown: names in it may come from any file."""
    return visible(_format_warning(message, category, filename, lineno, line))


def print_json(value: object) -> None:
    """Print plain data to stdout; in JSON all but one control character is escaped anyway."""
    print(json.dumps(value, indent=1).replace("\x7f", "\\u007f"))


def print_text(text: str) -> None:
    """Print text of several lines to stdout, as it is: for other programs, whatever the terminal's width."""
    print(text)


@contextmanager
def only_results() -> Iterator[None]:
    """Send to stderr what is written to stdout meanwhile: a plugin's banner, a data set's, a child process's.

    Standard output holds a command's results and nothing else, so that a parser can read them. Nor does what a
    plugin raises end the command as if it were done.
    """
    sys.stdout.flush()
    results = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr), of_plugins():
            yield
    finally:
        if sys.__stdout__ is not None:  # what went around the redirection waits there
            with suppress(OSError):
                sys.__stdout__.flush()
        os.dup2(results, 1)
        os.close(results)


def _console(stderr: bool, quiet: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PLAIN_WIDTH
    # Names of files and tensors may look like markup: [b], :x:.
    return Screen(
        stderr=stderr,
        quiet=quiet,
        width=width,
        highlight=False,
        soft_wrap=width is not None,
        markup=False,
        emoji=False,
    )


class Fitting(Table):
    """A table that leaves out columns where a screen has no room for all, and says which.

    Args:
        less: Titles of the columns that may be missing, the first to go first.
        layout: As rich's own.
    """

    def __init__(self, less: Sequence[str], **layout: Any) -> None:
        super().__init__(**layout)
        self._less = less
        self._layout = layout

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The columns that there is room for."""
        gone: list[str] = []
        part: Table = self
        for title in self._less:
            if (
                Measurement.get(console, options.update(width=_PLAIN_WIDTH), part).maximum
                <= options.max_width
            ):
                break
            gone.append(title)
            part = self._without(gone)
        yield from Table.__rich_console__(part, console, options)
        if gone:
            yield Text(f"no room for {', '.join(gone)}; --json has all", style="italic")

    def _without(self, gone: Sequence[str]) -> Table:
        part = Table(**self._layout)
        kept = [column for column in self.columns if column.header not in gone]
        for column in kept:
            part.add_column(column.header, justify=column.justify, no_wrap=column.no_wrap)
        for row in zip(*(column.cells for column in kept), strict=True):
            part.add_row(*row)
        return part


def table(
    title: str | None,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    left: int = 1,
    less: Sequence[str] = (),
) -> Table:
    """A table whose first ``left`` columns are text and whose others are numbers; see :class:`Fitting`."""
    layout = {"title_justify": "left", "title_style": "bold", "box": SIMPLE_HEAD, "pad_edge": False}
    drawn = Fitting(less, title=title, **layout)
    for i, column in enumerate(columns):
        drawn.add_column(column, justify="left" if i < left else "right", no_wrap=i >= left)
    for row in rows:
        drawn.add_row(*(visible_name(str(cell)) for cell in row))
    return drawn


def overrides(settings: Sequence[str]) -> Mapping[str, Plain]:
    """``PATH=VALUE`` texts as a mapping; values are read as YAML."""
    from prunekit.errors import SpecError
    from prunekit.spec.text import parse_value

    values: dict[str, Plain] = {}
    problems = []
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals or not path:
            problems.append(f"--set {setting}: must be PATH=VALUE, such as prune.scheduler.steps=14")
        elif path in values:
            problems.append(f"--set {path}: given twice")
        else:
            try:
                values[path] = parse_value(value, f"--set {path}")
            except SpecError as error:
                problems += error.problems
    if problems:
        raise SpecError(problems)
    return values
