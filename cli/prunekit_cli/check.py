"""``prunekit check``: what a component promises, a verdict a line."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from prunekit_cli import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prunekit.testing import Verdict

_WORDS = {"ok": "ok", "fail": "FAIL", "skip": "skip"}


def check(target: str, settings: list[str], as_json: bool, block: list[str]) -> bool:
    """Check one component, and print a line for each promise.

    Args:
        target: ``KIND:NAME``.
        settings: Options, ``OPTION=VALUE``.
        as_json: Print JSON.
        block: Plugins to leave out.

    Returns:
        Whether no check failed.

    Raises:
        SpecError: If there is no such kind, or an option is unknown, missing or wrong.
        PluginError: If there is nothing of that name.
    """
    from prunekit.errors import SpecError
    from prunekit.plugins.build import component
    from prunekit.plugins.host import did_you_mean, manager_for
    from prunekit.plugins.kinds import KINDS

    kind, colon, name = target.partition(":")
    if not colon or not name:
        raise SpecError(
            f"{target}: must be KIND:NAME, such as criterion:qm; `prunekit plugins` lists what there is"
        )
    if kind not in KINDS:
        raise SpecError(f"unknown kind {kind!r}{did_you_mean(kind, KINDS) or '.'} Kinds: {', '.join(KINDS)}.")
    options = dict(console.overrides(settings))
    with console.only_results():
        manager = manager_for(block)
        built = component(kind, {**options, "name": name}, manager)

        from prunekit.testing import judge

        verdicts = judge(kind, built, manager)
    if as_json:
        checked = {"kind": kind, "name": name, "options": json.loads(built.options.model_dump_json())}
        print(json.dumps({**checked, "verdicts": [asdict(v) for v in verdicts]}, indent=1))
    else:
        print("\n".join(lines(verdicts)))
    return not any(v.status == "fail" for v in verdicts)


def lines(verdicts: Sequence[Verdict]) -> list[str]:
    """A line for each verdict, and one that counts them."""
    texts = []
    for verdict in verdicts:
        detail = " ".join(verdict.detail.split())
        texts.append(f"{_WORDS[verdict.status]:<4}  {verdict.check}" + (f": {detail}" if detail else ""))
    counts = {status: sum(v.status == status for v in verdicts) for status in _WORDS}
    texts.append(f"{counts['ok']} ok, {counts['fail']} failed, {counts['skip']} skipped")
    return texts
