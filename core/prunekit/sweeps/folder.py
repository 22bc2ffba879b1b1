"""The folder of a sweep: a results file for each run, named by its key, and what each of them says."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import ResultsError
from prunekit.records import Plain, Row
from prunekit.results import open_results
from prunekit.results.claim import written
from prunekit.results.protocol import mark
from prunekit.results.replacing import replacing
from prunekit.sweeps.plan import Plan

RECORD = "sweep.json"
"""What the folder is: the runs, and the text of the sweep."""
_FORMAT = "prunekit-sweep"
_INDEX = "index.jsonl"
"""What complete files say, a line each; may be deleted at any time."""
_SPARE = 100  # lines that say nothing new, before the index is written anew
_FAILURE = ".failure.txt"
_STARTS = ".starts"
"""How far a run was, whenever a worker began with it; goes once the run is over."""
TRIES = 3
"""Workers that may die at the same place of a run."""

STATUSES = ("complete", "running", "unfinished", "failed", "missing", "foreign")


@dataclass(frozen=True)
class Found:
    """What there is of a run.

    Attributes:
        key: The name of its file.
        status: ``complete``; ``running``, if somebody works on it; ``unfinished``, if nobody does; ``failed``;
            ``missing``; or ``foreign``, a results file that the sweep does not name.
        parameters: Of the sweep.
        row: Numbers of the file; empty if there is none.
        failure: The traceback of a failure.
    """

    key: str
    status: str
    parameters: Mapping[str, Plain]
    row: Mapping[str, Plain]
    failure: str = ""


class Folder:
    """Reads and writes what stands in the folder of a sweep beside the results files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, plan: Plan) -> None:
        """Make the folder, or say which runs it is of now: results of others stay, and are foreign.

        Raises:
            ResultsError: If the folder is something else's, or cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if (self.path / RECORD).exists():
                self._runs()
            runs = {one.key: one.parameters for one in plan.runs}
            record = {"format": _FORMAT, "sweep": str(plan.source), "text": plan.text, "runs": runs}
            self._write(RECORD, record)
        except OSError as error:
            raise ResultsError(f"{self.path}: cannot be written: {error.strerror}") from None

    def output(self, key: str) -> Path:
        """A run's results file."""
        return self.path / f"{key}.h5"

    def fail(self, key: str, text: str) -> None:
        """Keep why a run failed."""
        with replacing(self.path / f"{key}{_FAILURE}") as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")

    def forgive(self, key: str) -> None:
        """Forget a failure."""
        for suffix in (_FAILURE, _STARTS):
            (self.path / f"{key}{suffix}").unlink(missing_ok=True)

    def starting(self, key: str, place: str) -> bool:
        """Note that a worker begins with a run, and how far that is; whether earlier ones have not all died there."""
        file = self.path / f"{key}{_STARTS}"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        if lines[-TRIES:] == [place] * TRIES:
            return False
        with open(file, "a", encoding="utf-8") as stream:
            print(place, file=stream)
        return True

    def over(self, key: str) -> None:
        """Forget who has begun with a run."""
        (self.path / f"{key}{_STARTS}").unlink(missing_ok=True)

    def failure(self, key: str) -> str:
        """The traceback of a failure, if there was one."""
        try:
            return (self.path / f"{key}{_FAILURE}").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def found(self) -> list[Found]:
        """Every run of the sweep, in its order, then results files that it does not name.

        Raises:
            ResultsError: If it is not the folder of a sweep.
        """
        runs, index, lines = self._runs(), *self._index()
        files = {p.stem: p for p in sorted(self.path.glob("*.h5"))}
        rows: dict[str, Row] = {}
        for key, file in files.items():
            stamp, (known, row) = _stamp(file), index.get(key, (None, {}))
            rows[key] = row if known == stamp else self.note(key)
        if lines > 2 * len(files) + _SPARE:
            with replacing(self.path / _INDEX) as temporary:
                entries = (_entry(key, _stamp(files[key]), row) for key, row in rows.items() if _lasts(row))
                temporary.write_text("".join(entries), encoding="utf-8")
        every = [*runs, *(key for key in files if key not in runs)]
        return [self._one(key, runs.get(key), rows.get(key, {})) for key in every]

    def note(self, key: str) -> Row:
        """Read a run's results file, and add what it says to the index."""
        file = self.output(key)
        stamp = _stamp(file)
        row = _row(file)
        if _lasts(row):
            with suppress(OSError), open(self.path / _INDEX, "a", encoding="utf-8") as stream:
                stream.write(_entry(key, stamp, row))
        return row

    def _index(self) -> tuple[dict[str, tuple[list[int], Row]], int]:
        """What each file said when it had its stamp, and how many lines say so; half a line is of a killed writer."""
        known: dict[str, tuple[list[int], Row]] = {}
        try:
            lines = (self.path / _INDEX).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return {}, 0
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                known[entry["key"]] = entry["stamp"], entry["row"]
        return known, len(lines)

    def counts(self) -> dict[str, int]:
        """How many runs there are of each status, results that the sweep does not name left out."""
        return dict(Counter(run.status for run in self.found() if run.status != "foreign"))

    def _one(self, key: str, parameters: Mapping[str, Plain] | None, row: Row) -> Found:
        failure = self.failure(key)
        if parameters is None:
            return Found(key, "foreign", {}, row)
        if row.get("status") == "complete":
            return Found(key, "complete", parameters, row)
        if written(self.output(key)):
            return Found(key, "running", parameters, row)
        status = "failed" if failure else "unfinished" if row else "missing"
        return Found(key, status, parameters, row, failure)

    def _runs(self) -> dict[str, Mapping[str, Plain]]:
        record = self._read(RECORD)
        runs = record.get("runs")
        if record.get("format") != _FORMAT or not isinstance(runs, dict):
            raise ResultsError(
                f"{self.path}: is neither the folder of a sweep (no {RECORD} in it) nor a results file; only regular "
                "files are read"
            )
        return runs

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, name: str, content: Mapping[str, object]) -> None:
        with replacing(self.path / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def digests(inputs: Mapping[str, str]) -> str:
    """Of a run's files, wherever they lie."""
    return " ".join(sorted(set(inputs.values())))


def _lasts(row: Row) -> bool:
    """Whether a file will go on saying so."""
    return bool(row["status"] == "complete")


def _entry(key: str, stamp: list[int], row: Row) -> str:
    return json.dumps({"key": key, "stamp": stamp, "row": dict(row)}) + "\n"


def _stamp(file: Path) -> list[int]:
    found = os.stat(file)
    return [found.st_mtime_ns, found.st_size]


def _row(file: Path) -> dict[str, Plain]:
    """The numbers of a results file that a table of many runs shows."""
    try:
        with open_results(file) as results:
            return dict(_numbers(results.summary))
    except ResultsError as error:
        return {"status": f"unreadable: {error}"}


def _numbers(summary: Row) -> Iterator[tuple[str, Plain]]:
    yield from (
        ("status", summary["status"]),
        ("spec_hash", summary["spec_hash"]),
        ("steps", len(summary["steps"])),
    )
    prune = summary["spec"].get("prune")
    if prune:
        yield from (("criterion", prune["criterion"]["name"]), ("lambda", prune["criterion"]["lambda"]))
    if summary["steps"]:
        last = summary["steps"][-1]
        yield from (
            ("sparsity", last["sparsity"]),
            ("step_seconds", sum(s["seconds"] for s in summary["steps"])),
        )
        for key in ("predicted_delta_loss", "delta_loss"):
            values = [s[key] for s in summary["steps"]]
            yield key, None if None in values else sum(values)
    for phase in ("dense", "pruned", "finetuned"):
        for name, value in (summary[phase] or {}).items():
            yield f"{phase}_{name}", value
    if summary["dense"] and summary["pruned"]:
        yield "train_delta_loss", summary["pruned"]["train_loss"] - summary["dense"]["train_loss"]
    yield "protocol", mark(summary["protocol"])
    yield "inputs", digests(summary["inputs"] or {})
    for name in ("threads", "seconds", "peak_memory", "peak_gpu_memory"):
        if name in summary["environment"]:
            yield name, summary["environment"][name]
