"""``prunekit reproduce``: a paper's grid, run or gone on with, and what comes of it."""

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
    if folder.exists() and not resume:
        raise ResultsError(f"{folder}: exists; --resume goes on with it")
    networks = TIERS[tier]
    for network in networks:
        if network.files and data is None:
            raise SpecError(
                f"--data: {network.name} needs the folder of its data ({network.spec['dataset']['name']}); prunekit "
                "downloads nothing"
            )
    root = None if data is None else str(Path(os.path.expanduser(data)).absolute())
    whole = True
    for network in networks:
        whole = _run(network, root, folder / network.name, workers, executor) and whole
    if not whole:
        console.stderr().print(f"some runs have failed; prunekit inspect {folder}/NETWORK/STAGE says which")
    return _report(networks, folder, tier, as_json) and whole


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
    sweep(file, folder / name, False, workers, executor, None, False, [], True, shows=False)
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
