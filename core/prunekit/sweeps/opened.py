"""A sweep as its readers have it: rows, a table, and how it stands."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

from prunekit.errors import ResultsError
from prunekit.records import Plain
from prunekit.sweeps.folder import Folder, Found
from prunekit.sweeps.seeds import over_seeds


class Sweep:
    """The folder of a sweep, read now; needs no torch.

    Attributes:
        path: The folder.
        runs: Every run, and results files that the sweep does not name.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.runs: list[Found] = Folder(self.path).found()

    @property
    def counts(self) -> dict[str, int]:
        """Number of runs with each status."""
        return dict(Counter(run.status for run in self.runs))

    @property
    def protocols(self) -> dict[str, int]:
        """Marks of the protocols of the runs, with their counts; rows under different ones are not comparable."""
        found = [
            run.row["protocol"] for run in self.runs if run.status != "foreign" and "protocol" in run.row
        ]
        return dict(Counter(found).most_common())

    def rows(self) -> list[dict[str, Plain]]:
        """A row for each run of the sweep: its ``key``, ``status``, parameters, and numbers of its results file."""
        hidden = ("status", "inputs")
        return [
            {
                "key": r.key,
                "status": r.status,
                **r.parameters,
                **{k: v for k, v in r.row.items() if k not in hidden},
            }
            for r in self.runs
            if r.status != "foreign"
        ]

    def over_seeds(self) -> list[dict[str, Plain]]:
        """A row for each combination of parameters but seeds: ``runs``, ``complete``, means, deviations (``…_sd``)."""
        return over_seeds([run for run in self.runs if run.status != "foreign"])

    def frame(self, seeds: bool = True) -> Any:
        """The rows as a pandas ``DataFrame``.

        Args:
            seeds: A row for each run; else those of :meth:`over_seeds`.

        Raises:
            ResultsError: If pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ModuleNotFoundError:
            raise ResultsError("frame: pandas is not installed; pip install pandas, or take rows()") from None
        rows = self.rows() if seeds else self.over_seeds()
        columns = list(dict.fromkeys(name for row in rows for name in row))
        cells = {name: [row.get(name) for row in rows] for name in columns}
        # A list or a mapping in a cell is one value.
        series = {name: pandas.Series(values, dtype=object) for name, values in cells.items()}
        return pandas.DataFrame(series).infer_objects()

    def files(self) -> list[Path]:
        """Results files of the runs that are complete."""
        return [self.path / f"{run.key}.h5" for run in self.runs if run.status == "complete"]

    def plot(self, path: str | Path, columns: int | None = None) -> None:
        """Draw the change of the loss over λ (or whatever else varies), a curve for each criterion, means over seeds.

        Args:
            path: Ends in ``.png``, ``.pdf`` or ``.svg``.
            columns: As wide as one or two columns of a paper; default: for a screen.

        Raises:
            SpecError: If the file name is not a picture's.
            ResultsError: If there is nothing to draw, or the file cannot be written.
        """
        from prunekit.reports.picture import picture
        from prunekit.sweeps.figure import check, fill

        rows = self.rows()
        check(rows)
        names = list(dict.fromkeys(name for run in self.runs for name in run.parameters))
        picture(Path(path).expanduser(), lambda figure: fill(rows, names, figure), self.path.name, columns)

    def _repr_html_(self) -> str:
        from prunekit.reports.notebook import page
        from prunekit.sweeps.table import parts

        return page(parts(self.path, self.runs, self.protocols, more="all in .rows()"))

    def __repr__(self) -> str:
        return f"<sweep {self.path}: {', '.join(f'{n} {status}' for status, n in self.counts.items())}>"
