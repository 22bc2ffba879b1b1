"""Values of any summary as they are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prunekit.reports.words import number


def leaves(
    summary: Mapping[str, object], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], object]]:
    """What a summary holds, at any depth, and where."""
    for key, value in summary.items():
        place = (*path, key)
        if isinstance(value, dict):
            yield from leaves(value, place)
        else:
            yield place, value


def shown(value: object) -> str:
    """A number, or a list of them, of which the first three."""
    if isinstance(value, bool) or value is None:
        return "–" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value) if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.3g}"
    if isinstance(value, list) and all(isinstance(v, int | float) for v in value):
        return ", ".join(f"{v:.4g}" for v in value[:3]) + (", …" if len(value) > 3 else "")
    if isinstance(value, dict) and isinstance(value.get("name"), str):  # a component with options
        options = ", ".join(f"{key}={shown(item)}" for key, item in value.items() if key != "name")
        return f"{value['name']} ({options})" if options else str(value["name"])
    return str(value)
