"""What a probe found in a line or two, on a screen that has more to show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prunekit.records import Row
from prunekit.reports import budget, certificate
from prunekit.reports.spark import spark
from prunekit.reports.values import leaves, shown

_FEW = 4  # numbers
_CURVES = 2
_MOMENTS = {"dense": "before pruning", "pruned": "after pruning", "finetuned": "after fine-tuning"}

Path = tuple[str, ...]


def in_short(
    label: str, summary: Row, keys: Sequence[str], encoding: str | None, rest: str | None = None
) -> str:
    """Of what was measured at steps a curve, from its first number to its last; of the rest some numbers.

    Args:
        label: The probe's.
        summary: Its own.
        keys: As :attr:`prunekit.Probe.headline`; without, the first numbers that there are.
        encoding: Of the screen.
        rest: Where all of it is found; default the command line's ``--probe``.
    """
    steps = summary.get("steps")
    rows = [row for row in steps if isinstance(row, dict)] if isinstance(steps, list) else []
    if rows and budget.is_budget(rows):
        return budget.headline(label, rows)
    if rows and certificate.is_certificate(rows):
        return certificate.headline(label, rows)
    said = [*_curves(rows, keys, encoding), *_numbers(summary, keys)]
    return f"{label}: {'; '.join(said) or 'nothing to say in short'}; more {rest or f'with --probe {label}'}"


def _curves(rows: Sequence[Row], keys: Sequence[str], encoding: str | None) -> Iterator[str]:
    if not rows:
        return
    paths = _matching(rows[0], keys) or [
        path for path, value in leaves(rows[0]) if isinstance(value, float) and path != ("step",)
    ]
    for path in paths[:_CURVES]:
        values = [_at(row, path) for row in rows]
        numbers = [v if isinstance(v, int | float) else None for v in values]
        yield f"{_words(path, keys)} {shown(values[0])} {spark(numbers, encoding=encoding)} {shown(values[-1])}"


def _numbers(summary: Row, keys: Sequence[str]) -> Iterator[str]:
    once = {key: value for key, value in summary.items() if key != "steps"}
    moments = {key: value for key, value in once.items() if key in _MOMENTS and isinstance(value, dict)}
    rest = {key: value for key, value in once.items() if key not in moments}
    for name, found in (*moments.items(), ("", rest)):
        paths = _matching(found, keys)
        if not paths and found:
            paths = [path for path, value in leaves(found) if isinstance(value, float | list)][:_FEW]
        if paths:
            when = f"{_MOMENTS[name]} " if name else ""
            yield when + ", ".join(f"{_words(path, keys)} {shown(_at(found, path))}" for path in paths)


def _matching(found: Row, keys: Sequence[str]) -> list[Path]:
    """Where some keys lead; a key with ``*`` to several places."""
    paths: list[Path] = []
    for key in keys:
        ways: list[tuple[Path, object]] = [((), found)]
        for part in key.split("."):
            ways = [
                ((*path, name), value[name])
                for path, value in ways
                if isinstance(value, dict)
                for name in (value if part == "*" else (part,))
                if name in value
            ]
        paths += [path for path, _ in ways]
    return paths


def _words(path: Path, keys: Sequence[str]) -> str:
    """A path without what a key has before its ``*``, which only says what these are."""
    for parts in (key.split(".") for key in keys):
        if len(parts) == len(path) and all(p in ("*", q) for p, q in zip(parts, path, strict=True)):
            following = [*parts[1:], ""]
            path = tuple(q for q, then in zip(path, following, strict=True) if then != "*")
            break
    return " ".join(path).replace("_", " ").replace("finetuned", "fine-tuned")


def _at(found: object, path: Path) -> object:
    for part in path:
        found = found.get(part) if isinstance(found, dict) else None
    return found
