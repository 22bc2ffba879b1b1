"""Claims about where a file comes from: its spec's hash, and the digests of what the run read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prunekit.errors import DataError
from prunekit.runs.identity import digest, files_read, spec_hash
from prunekit.runs.verification.claims import Claim, differs, holds, unchecked
from prunekit.runs.verification.evidence import Evidence, UnavailableError, explained


def of_spec(evidence: Evidence) -> Iterator[Claim]:
    """The hash of the spec in the file."""
    summary = evidence.results.summary
    stated = summary["spec_hash"]
    if not stated:
        return
    try:
        spec = evidence.spec
    except UnavailableError as why:
        yield unchecked("spec_hash", str(why))
        return
    # Of a run on another kind of device, whose type the file states.
    device = str(summary["environment"].get("device", spec.settings.device)).partition(":")[0]
    found = spec_hash(spec, spec.data, device)
    if found == stated:
        yield holds("spec_hash", found)
    else:
        yield differs("spec_hash", f"the file says {stated}, and its spec has {found}")


def of_inputs(evidence: Evidence) -> Iterator[Claim]:
    """Digests of the files that the run read, or of its examples; notes where the data here are others."""
    stated: dict[str, str] = evidence.results.summary["inputs"]
    examples = evidence.results.summary["environment"].get("examples")
    if stated:
        yield from _files(evidence, stated)
    if examples is not None:
        yield _examples(evidence, examples)


def _files(evidence: Evidence, stated: dict[str, str]) -> Iterator[Claim]:
    try:
        with explained():
            found: dict[str, Path] = files_read(evidence.spec)
    except UnavailableError as why:
        yield from (unchecked(f"input {name}", str(why)) for name in stated)
        return
    moved = list(found.values()) if len(found) == len(stated) else []
    for i, (name, claimed) in enumerate(stated.items()):
        # Where the spec's paths have been set to where the data lie now, the names are others and the order is not.
        path = found.get(name, moved[i] if moved else None)
        claim = _file(name, claimed, path)
        if claim.verdict == "differs":
            evidence.doubtful = f"input {name} is not the file that the run read"
        yield claim


def _file(name: str, stated: str, path: Path | None) -> Claim:
    if path is None:
        return unchecked(f"input {name}", "it is not there")
    try:
        found = digest(path)
    except DataError as error:
        return unchecked(f"input {name}", str(error))
    if found == stated:
        return holds(f"input {name}", found)
    return differs(f"input {name}", f"the run read {stated}, and the file here has {found}")


def _examples(evidence: Evidence, stated: str) -> Claim:
    try:
        found = evidence.fingerprint
    except UnavailableError as why:
        return unchecked("examples", str(why))
    if found == stated:
        return holds("examples", stated)
    evidence.doubtful = "the examples are not those of the run"
    return differs("examples", f"the run had {stated}, and here are {found or 'others, from files'}")
