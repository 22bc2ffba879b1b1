"""``prunekit verify``: what a results file claims, computed again, one line per claim."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.visible import visible_name
from prunekit_cli import console

if TYPE_CHECKING:
    from prunekit.runs.verification.claims import Verdict, Verification

_WORDS: dict[Verdict, str] = {"holds": "holds", "differs": "DIFFERS", "unchecked": "unchecked"}


def verify(file: Path, as_json: bool, settings: list[str], device: str, block: list[str], code: bool) -> bool:
    """Verify a file, and print a line for each claim.

    Args:
        file: The results.
        as_json: Print JSON.
        settings: Of its spec, ``PATH=VALUE``, such as where data lie now.
        device: Where it is computed.
        block: Plugins to leave out.
        code: Whether Python that the file names may run.

    Returns:
        Whether no claim differs.

    Raises:
        ResultsError: If the file cannot be read, or is damaged.
    """
    import prunekit

    overrides, screen = console.overrides(settings), console.stderr()
    with prunekit.open(file) as results:
        with console.only_results(), screen.status("") as status:
            verification = results.verify(
                code=code,
                block=block,
                overrides=overrides,
                device=device,
                say=lambda text: screen.print(visible_name(text)),
                progress=lambda text: status.update(visible_name(text)),
            )
        if as_json:
            found: dict[str, object] = {"file": str(results.path)}
            found |= {str(verdict): verification.count(verdict) for verdict in _WORDS}
            console.print_json(found | {"claims": [asdict(claim) for claim in verification.claims]})
        else:
            for line in lines(verification):
                console.stdout().print(line)
    return verification.holds


def lines(verification: Verification) -> Iterator[str]:
    """A line for each claim, and one that counts them."""
    for claim in verification.claims:
        detail = visible_name(claim.detail)
        yield f"{_WORDS[claim.verdict]:<9}  {visible_name(claim.name)}" + (f": {detail}" if detail else "")
    held, wrong, open_ = (verification.count(verdict) for verdict in _WORDS)
    yield f"{held} hold, {wrong} differ, {open_} cannot be checked"
