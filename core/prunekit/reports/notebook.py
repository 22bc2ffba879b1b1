"""Runs, prunings and steps where a notebook shows them: small tables of HTML, with the words of ``prunekit inspect``.

Colours and letters are the notebook's own, light or dark. There is no script and no style sheet, and everything is
escaped that comes from a file, a model or a plugin.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, SupportsIndex, overload

from prunekit.errors import ResultsError
from prunekit.records import Attempt, Row, StepRecord
from prunekit.reports import overview
from prunekit.reports.in_short import in_short
from prunekit.reports.page.markup import element, shown
from prunekit.reports.plain_table import PlainTable
from prunekit.reports.words import number, percent

if TYPE_CHECKING:
    from prunekit.results import Results

_TITLE = "caption-side: top; text-align: left; font-weight: bold; padding-top: 1em"


def page(parts: Iterable[PlainTable | str]) -> str:
    """Tables and lines below each other."""
    return element("div", *(_line(part) if isinstance(part, str) else table(part) for part in parts))


def table(content: PlainTable) -> str:
    """A table whose title stands above it."""

    def cells(tag: str, texts: Sequence[str]) -> str:
        sides = ("left" if i < content.left else "right" for i in range(len(texts)))
        return element(
            "tr",
            *(
                element(tag, shown(text), style=f"text-align: {side}")
                for text, side in zip(texts, sides, strict=True)
            ),
        )

    caption = element("caption", shown(content.title), style=_TITLE)
    head = element("thead", cells("th", content.columns))
    return element(
        "table",
        *([caption] if content.title else []),
        head,
        element("tbody", *(cells("td", row) for row in content.rows)),
    )


def of_results(results: Results) -> str:
    """What ``prunekit inspect`` prints; of a file that was closed, what had been read."""
    return page(_readable(overview.overview(results, commands=False)))


def of_pruning(steps: Sequence[StepRecord], attempts: Sequence[Attempt], rest: Mapping[str, object]) -> str:
    """What :func:`prunekit.prune` did.

    Args:
        steps: That stayed.
        attempts: All of them.
        rest: What the pruning holds beside these: ``probes``, ``warnings`` and ``stopped``.
    """
    return page(_of_pruning(steps, attempts, rest))


def _of_pruning(
    steps: Sequence[StepRecord], attempts: Sequence[Attempt], rest: Mapping[str, object]
) -> Iterator[PlainTable | str]:
    if not steps:
        yield "Nothing has been pruned."
    else:
        last = steps[-1]
        total = last.pruned + last.remaining
        yield f"{percent(last.sparsity, 3)} of {total:,} prunable weights are gone; {last.remaining:,} are kept."
    if rest.get("stopped") is not None:
        yield f"Pruning stopped by {rest['stopped']}"
    yield from overview.steps(steps, more="all in .steps")
    yield from overview.attempts([_row(attempt) for attempt in attempts], more="all in .attempts")
    probes, warnings = rest.get("probes"), rest.get("warnings")
    for label, found in probes.items() if isinstance(probes, dict) else ():
        yield in_short(label, found, (), "utf-8", f'in .probes["{label}"]')
    for text in warnings if isinstance(warnings, list) else ():
        yield f"Warning: {text}"


class Step(StepRecord):
    """A record of a step that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        title = f"Step {self.step}: {percent(self.sparsity, 3)} sparse, {self.remaining:,} weights kept"
        rows = [
            ["predicted Δloss", number(self.predicted_delta_loss)],
            ["measured Δloss", number(self.delta_loss)],
            ["seconds", f"{self.seconds:.2f}"],
        ]
        layers = [[name, percent(sparsity, 3)] for name, sparsity in self.layers.items()]
        return page([PlainTable(title, ["", ""], rows), PlainTable("Layers", ["tensor", "sparsity"], layers)])


class Steps(list[StepRecord]):
    """The records of some steps, which a notebook shows as one table."""

    def __init__(self, records: Iterable[StepRecord] = ()) -> None:
        super().__init__(Step.of(record) for record in records)

    @overload
    def __getitem__(self, which: SupportsIndex) -> StepRecord: ...
    @overload
    def __getitem__(self, which: slice) -> Steps: ...
    def __getitem__(self, which: SupportsIndex | slice) -> StepRecord | Steps:
        found = super().__getitem__(which)
        return Steps(found) if isinstance(found, list) else found

    def _repr_html_(self) -> str:
        return page(overview.steps(self, everything=True)) if self else page(["No steps."])


def _readable(parts: Iterator[PlainTable | str]) -> Iterator[PlainTable | str]:
    try:
        yield from parts
    except ResultsError as error:
        yield str(error)


def _line(text: str) -> str:
    return element("p", shown(text), style="white-space: pre-line")


def _row(attempt: Attempt) -> Row:
    """As a results file has it."""
    return {
        "step": attempt.step,
        "target_sparsity": attempt.target.sparsity,
        "lambda": attempt.lam,
        "damping": attempt.target.damping,
        "predicted_delta_loss": attempt.predicted_delta_loss,
        "delta_loss": attempt.delta_loss,
        "measured": attempt.measured,
        "accepted": attempt.accepted,
    }
