"""What is made of a reproduction's runs: tables, pictures, a page, and whether the claims hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.records import Plain
from prunekit.reports.page.markup import element, table
from prunekit.reports.page.page import page
from prunekit.reports.page.sections import Section
from prunekit.reports.page.target import write
from prunekit.reports.picture import picture
from prunekit.reports.plain_table import PlainTable
from prunekit.reproduction import tables
from prunekit.reproduction.claims import Claim, Grid, claims
from prunekit.reproduction.figures import budgets, outcomes
from prunekit.reproduction.measured import Measured, cells, measured
from prunekit.reproduction.prediction import Prediction, leave_one_criterion_out
from prunekit.reproduction.tiers import Network
from prunekit.results.replacing import replacing
from prunekit.sweeps.figure import fill
from prunekit.sweeps.opened import Sweep
from prunekit.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

STAGES = ("dense", "paper", "beyond")
_TITLE = "Revisiting Loss Modelling for Unstructured Pruning (arXiv 2006.12279), run again"
_METHOD = (
    "Each seed has a network and a split of its own. λ, and where a table says so π, are chosen by the mean over the "
    "seeds on validation data; what is reported is of the training data (the published Table 1 does not say of which) "
    "and of test data. ± is the standard deviation over seeds. Differences are taken between runs of one seed, with "
    "Student's interval; p is the exact permutation test's, which for five seeds cannot be below 0.0625. Of claims 2 "
    "and 3 the limits are ours."
)


@dataclass(frozen=True)
class Report:
    """What was found of a network.

    Attributes:
        network: Which.
        sweeps: Stage to its runs.
        grid: The cells of the paper's grid.
        further: Row to runs, of what the paper does not have.
        claims: With their verdicts.
        predictions: What tells the outcome of fine-tuning.
    """

    network: Network
    sweeps: Mapping[str, Sweep]
    grid: Grid
    further: Mapping[str, Sequence[Measured]]
    claims: Sequence[Claim]
    predictions: Sequence[Prediction]

    def tables(self) -> Iterator[PlainTable]:
        """The most telling first."""
        network = self.network
        yield tables.of_claims(self.claims)
        yield tables.loss_change(network, self.grid, self.further)
        yield tables.finetuned(network, self.grid, self.further)
        yield tables.of_predictions(self.predictions)
        yield tables.budget(self.grid, network.steps)
        yield tables.dense(self.sweeps["dense"].rows())

    def figures(self) -> Mapping[str, tuple[str, Callable[[Figure], None]]]:
        """Name to what it shows and what draws it."""
        rows = self.sweeps["paper"].rows()
        return {
            "loss": ("Change of the loss over λ", partial(fill, rows, ["prune.scheduler.steps"])),
            "outcomes": (
                "Error after fine-tuning, over the change of the loss",
                partial(outcomes, self.grid, self.further),
            ),
            "budget": (
                "What the change of the loss is made of",
                partial(budgets, self.grid, self.network.steps),
            ),
        }


def of_network(network: Network, folder: Path) -> Report:
    """Read what there is.

    Args:
        network: Which.
        folder: Of its sweeps.
    """
    sweeps = {stage: Sweep(folder / stage) for stage in STAGES if (folder / stage).exists()}
    grid = cells(measured(sweeps["paper"]), network.seeds)
    others = measured(sweeps["beyond"]) if "beyond" in sweeps else []
    further = {}
    for row in network.beyond:
        runs = [run for run in others if _is(run, row.criterion["name"], row.scheduler["name"])]
        if len(runs) == len(network.seeds):
            further[row.name] = sorted(runs, key=lambda run: run.seed)
    every = [run for runs in (*grid.values(), *further.values()) for run in runs]
    return Report(network, sweeps, grid, further, claims(network, grid), leave_one_criterion_out(every))


def _is(run: Measured, criterion: Plain, scheduler: Plain) -> bool:
    return (run.criterion, run.scheduler) == (criterion, scheduler)


def publish(reports: Sequence[Report], folder: Path, tier: str) -> list[Path]:
    """Write the page, the tables as text, the numbers, and the pictures.

    Returns:
        The files, the page first.

    Raises:
        ResultsError: If one cannot be written.
    """
    written = [folder / "index.html", folder / "tables.md", folder / "claims.json"]
    write(written[0], page(_TITLE, _sections(reports, tier), {}))
    with replacing(written[1]) as temporary:
        temporary.write_text("\n".join(_markdown(reports)), encoding="utf-8")
    with replacing(written[2]) as temporary:
        found = {report.network.name: [asdict(claim) for claim in report.claims] for report in reports}
        temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
    for report in reports:
        for name, (title, draw) in report.figures().items():
            written.append(folder / f"{report.network.name}-{name}.svg")
            picture(written[-1], draw, title)
    return written


def _sections(reports: Sequence[Report], tier: str) -> Iterator[Section]:
    said = Section("method", "How")
    said.body = element("p", escape(_METHOD))
    said.body += element("p", escape(f"Tier {tier}, prunekit {__version__}."))
    for report in reports:
        name = report.network.name
        for i, one in enumerate(report.tables()):
            short, _, rest = one.title.partition(": ")
            body = (element("p", escape(rest)) if rest else "") + table(one.columns, one.rows, left=one.left)
            yield Section(f"{name}-{i}", f"{name}: {short}", body)
        for key, (title, draw) in report.figures().items():
            section = Section(f"{name}-{key}", f"{name}: {title}")
            section.draw(f"{name}-{key}", draw, title)
            yield section
    yield said


def _markdown(reports: Sequence[Report]) -> Iterator[str]:
    for report in reports:
        yield f"## {report.network.name}\n"
        for one in report.tables():
            yield f"**{one.title}**\n"
            yield "| " + " | ".join(one.columns) + " |"
            yield "|" + "|".join("---" if i < one.left else "---:" for i in range(len(one.columns))) + "|"
            yield from ("| " + " | ".join(row) + " |" for row in one.rows)
            yield ""
