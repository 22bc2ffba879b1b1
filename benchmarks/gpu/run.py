"""Run the parts of the GPU check one after another, each in a process of its own and bounded in time."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from figures import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
PARTS = {  # the most seconds for each; in all under eight minutes
    "agreement": 150,
    "training": 40,
    "curvature": 90,
    "peak": 30,
    "selection": 20,
    "layers": 75,
    "steps": 35,
    "processes": 35,
}


@dataclass
class Outcome:
    """How a part ended.

    Attributes:
        part: Its name.
        how: ``passed``, ``failed``, or ``stopped`` where its time was over.
        seconds: It took.
        figures: What it found out until then.
    """

    part: str
    how: str
    seconds: float
    figures: list[Figure] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return self.how == "passed" and all(f.right and f.met is not False for f in self.figures)


def run(part: str, limit: float, cpu: bool, log: IO[str]) -> Outcome:
    """Run one part."""
    command = [sys.executable, str(HERE / f"{part}.py"), *(["--cpu"] if cpu else [])]
    log.write(f"\n== {part}\n")
    log.flush()
    start, how = time.perf_counter(), "passed"
    # A process group of its own: what a part has started ends with it.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
    try:
        said, _ = process.communicate(timeout=limit)
        how = "passed" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        how = "stopped"
    taken = time.perf_counter() - start
    figures = []
    for line in said.splitlines():
        if line.startswith("{"):
            figures.append(Figure(**json.loads(line)))
        else:
            log.write(f"{line}\n")
    return Outcome(part, how, taken, figures)


def device_name(cpu: bool) -> str:
    """The card, or the processor."""
    if cpu:
        return f"CPU ({platform.processor() or platform.machine()}, {os.cpu_count()} cores)"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"


def table(outcomes: list[Outcome], title: str) -> Table:
    """All figures."""
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column, justify in (
        ("part", "left"),
        ("", "left"),
        ("measured", "right"),
        ("target", "right"),
        ("", "left"),
    ):
        shown.add_column(column, justify=justify)  # type: ignore[arg-type]
    for outcome in outcomes:
        for figure in outcome.figures:
            shown.add_row(outcome.part, figure.what, measured(figure), target(figure), verdict(figure))
        shown.add_row(
            outcome.part, f"[bold]{outcome.how}[/bold]", f"{outcome.seconds:.0f} s", "", "", end_section=True
        )
    return shown


def measured(figure: Figure) -> str:
    return "not measured" if figure.value is None else f"{figure.value:.4g} {figure.unit}".strip()


def target(figure: Figure) -> str:
    if figure.most is not None:
        return f"≤ {figure.most:g}"
    return "" if figure.least is None else f"≥ {figure.least:g}"


def verdict(figure: Figure) -> str:
    if not figure.right:
        return "WRONG"
    return {True: "met", False: "missed", None: ""}[figure.met]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="what needs no GPU, with small sizes")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    with (given.out / "log.txt").open("w", encoding="utf-8") as log:
        for part in given.only:
            outcomes.append(run(part, PARTS[part], given.cpu, log))
            print(
                f"{part}: {outcomes[-1].how} after {outcomes[-1].seconds:.0f} s", file=sys.stderr, flush=True
            )
            write(given.out / "figures.json", given.cpu, outcomes)
    title = f"{device_name(given.cpu)}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    Console(width=130).print(table(outcomes, title))
    sys.exit(0 if all(outcome.passed for outcome in outcomes) else 1)


def write(path: Path, cpu: bool, outcomes: list[Outcome]) -> None:
    """After every part: a machine may go away in the middle."""
    import torch

    content = {
        "device": device_name(cpu),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "passed": all(outcome.passed for outcome in outcomes),
        "parts": [asdict(outcome) for outcome in outcomes],
    }
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
