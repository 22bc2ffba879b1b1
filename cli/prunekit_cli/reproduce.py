"""``prunekit reproduce``: a paper's grid, run or continued, and its outcome."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit_cli import console
from prunekit_cli.console import table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prunekit.reproduction.tiers import Network

_PAPER = "2006.12279"


def reproduce(
    paper: str,
    tier: str,
    data: Path | None,
    out: Path | None,
    resume: bool,
    workers: int | None,
    executor: str | None,
    as_json: bool,
) -> bool:
    """Run what is left of a reproduction, and report.

    Returns:
        Whether every run is complete and no claim fails.
    """
    from prunekit.errors import ResultsError, SpecError
    from prunekit.reproduction.tiers import TIERS

    if paper != _PAPER:
        raise SpecError(f"paper {paper!r}: the only one is {_PAPER}")
    if tier not in TIERS:
        raise SpecError(f"--tier {tier}: accepted are {', '.join(TIERS)}")
    folder = Path(os.path.expanduser(out)) if out is not None else Path(f"{paper}-{tier}")
    networks = TIERS[tier]
    root = None if data is None else Path(os.path.expanduser(data)).absolute()
    for network in networks:
        if network.files and (root is None or not root.is_dir()):
            found = "is not given" if root is None else f"{root} is not a folder"
            raise SpecError(
                f"--data: {found}, and {network.name} needs the folder of its data ({network.spec['dataset']['name']}); "
                "prunekit downloads nothing"
            )
    if folder.exists() and not resume:
        raise ResultsError(f"{folder}: exists; --resume continues it")
    _begin(folder, {"paper": paper, "tier": tier})
    whole = True
    for network in networks:
        place = folder / network.name
        if not _run(network, None if root is None else str(root), place, workers, executor):
            console.stderr().print(
                f"runs of {network.name} have failed; prunekit inspect {place}/STAGE says which and why"
            )
            whole = False
    if not all((folder / network.name / "paper").is_dir() for network in networks):
        return False  # there is nothing to report of
    return _report(networks, folder, tier, as_json) and whole


def _begin(folder: Path, record: Mapping[str, str]) -> None:
    """Say whose folder it is, or make sure that it is this reproduction's.

    Raises:
        ResultsError: If it is something else's.
    """
    from prunekit.errors import ResultsError
    from prunekit.results.replacing import replacing

    file = folder / "reproduction.json"
    try:
        there = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    except (OSError, ValueError):
        there = {}
    if there is None and folder.exists() and any(folder.iterdir()):
        raise ResultsError(f"{folder}: is not the folder of a reproduction (no {file.name} in it)")
    if there is not None and there != record:
        raise ResultsError(f"{folder}: is of another paper or tier ({there}); give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(dict(record)), encoding="utf-8")


def _run(network: Network, root: str | None, folder: Path, workers: int | None, executor: str | None) -> bool:
    """All stages of a network, one after another: each needs the networks of the first."""
    from prunekit.sweeps.opened import Sweep

    if not _stage("dense", network.dense(root), folder, workers, executor):
        return False
    keys = {
        run.parameters["seed"]: run.key for run in Sweep(folder / "dense").runs if run.status == "complete"
    }
    checkpoints = [str(Path("dense") / f"{keys[seed]}.h5") for seed in network.seeds]
    whole = _stage("paper", network.paper(root, checkpoints), folder, workers, executor)
    if network.beyond:
        whole = _stage("beyond", network.further(root, checkpoints), folder, workers, executor) and whole
    return whole


def _stage(
    name: str, content: Mapping[str, Any], folder: Path, workers: int | None, executor: str | None
) -> bool:
    """Write a sweep, and do what is left of it; whether all its runs are complete."""
    from prunekit.results.replacing import replacing
    from prunekit.sweeps.opened import Sweep
    from prunekit_cli.sweep import sweep

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    with replacing(file) as temporary:  # JSON is YAML
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    console.stderr().print(f"{folder.name}: {name}")
    # What has failed is tried again: whoever goes on has mended something.
    sweep(file, folder / name, False, workers, executor, "failed", False, [], True, shows=False)
    counts = Sweep(folder / name).counts
    return set(counts) <= {"complete", "foreign"}


def _report(networks: tuple[Network, ...], folder: Path, tier: str, as_json: bool) -> bool:
    from prunekit.reproduction.report import of_network, publish

    reports = [of_network(network, folder / network.name) for network in networks]
    files = publish(reports, folder, tier)
    verdicts = [claim.verdict for report in reports for claim in report.claims]
    if as_json:
        console.print_json(json.loads((folder / "claims.json").read_text(encoding="utf-8")))
    else:
        screen = console.stdout()
        for report in reports:
            for one in report.tables():
                screen.print(table(one.title, one.columns, one.rows, left=one.left, less=one.less))
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("pass", "fail", "undecided"))
        screen.print(f"Claims: {counts}. Page in {files[0]}")
    return "fail" not in verdicts
