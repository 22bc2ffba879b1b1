"""``prunekit plugins`` and ``prunekit plugins show``."""

from __future__ import annotations

import inspect
import json
import sys
from typing import Any

from prunekit_cli import console


def listing(as_json: bool) -> None:
    """Every component and every plugin that supplies none because it is broken or blocked."""
    from prunekit.plugins import default_manager

    manager = default_manager()
    rows: list[dict[str, Any]] = []
    for plugin in manager.plugins:
        source = {
            "plugin": plugin.name,
            "module": plugin.module,
            "distribution": plugin.distribution,
            "version": plugin.version,
        }
        for component in plugin.components:
            conflict = len(manager.providers(component.kind, component.name)) > 1
            rows.append(
                {
                    "kind": component.kind,
                    "name": component.name,
                    **source,
                    "status": "conflict" if conflict else plugin.status,
                    "error": _conflict(manager, component.kind, component.name) if conflict else None,
                }
            )
        if not plugin.components:
            rows.append(
                {"kind": None, "name": None, **source, "status": plugin.status, "error": plugin.error or None}
            )
    rows.sort(key=lambda r: (r["kind"] or "~", r["name"] or ""))
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    columns = ["kind", "name", "plugin", "distribution", "version", "status"]
    console.stdout().print(
        console.table(None, columns, [[r[c] or "–" for c in columns] for r in rows], left=len(columns))
    )
    for text in sorted({f"{r['plugin']} ({r['distribution']}): {r['error']}" for r in rows if r["error"]}):
        print(text, file=sys.stderr)


def _conflict(manager: Any, kind: str, name: str) -> str:
    from prunekit.errors import PluginError

    try:
        manager.get(kind, name)
    except PluginError as error:
        return str(error)
    return ""


def show(name: str, as_json: bool) -> None:
    """A component's documentation, origin and options."""
    from prunekit.components import KINDS
    from prunekit.errors import PluginError
    from prunekit.plugins import default_manager, did_you_mean

    manager = default_manager()
    found = [(kind, p, c) for kind in KINDS for p, c in manager.providers(kind, name)]
    if not found:
        names = sorted({n for kind in KINDS for n in manager.names(kind)})
        broken = "".join(f" Plugin {p.name!r} {p.error}." for p in manager.plugins if p.status == "broken")
        raise PluginError(
            f"nothing is called {name!r}{did_you_mean(name, names)} `prunekit plugins` lists what there is.{broken}"
        )
    described: list[dict[str, Any]] = [
        {
            "kind": kind,
            "name": name,
            "plugin": p.name,
            "class": p.provides(c),
            "distribution": p.distribution,
            "version": p.version,
            "description": inspect.getdoc(c) or "",
            "options": _options(kind, c),
        }
        for kind, p, c in found
    ]
    if as_json:
        print(json.dumps(described, indent=1))
        return
    screen = console.stdout()
    for item in described:
        screen.print(f"{item['kind']} {name}   {item['class']} ({item['distribution']} {item['version']})")
        screen.print(f"\n{item['description']}\n", markup=False)
        options = item["options"]
        if options:
            rows = [[o["name"], o["type"], o["default"], o["description"]] for o in options]
            screen.print(console.table("Options", ["option", "type", "default", "meaning"], rows, left=4))
        else:
            screen.print("No options.")


def _options(kind: str, component: Any) -> list[dict[str, str]]:
    from prunekit.spec.schema import ENGINE_KEYS

    meanings = _meanings(inspect.getdoc(component.Options) or "")
    rows = [
        {
            "name": key,
            "type": str(schema["type"]).replace("'", "").strip("[]").replace(", ", " | "),
            "default": json.dumps(schema["default"]),
            "description": "taken by the engine",
        }
        for key, schema in ENGINE_KEYS.get(kind, {}).items()
    ]
    for key, field in component.Options.model_fields.items():
        default = "required" if field.is_required() else json.dumps(field.default, default=str)
        limits = [
            f"{sign} {getattr(m, attribute)}"
            for m in field.metadata
            for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
            if getattr(m, attribute, None) is not None
        ]
        annotation = inspect.formatannotation(field.annotation).replace("typing.", "").replace("pathlib.", "")
        if "Annotated[" in annotation:
            annotation = _plain(field.annotation)
        rows.append(
            {
                "name": key,
                "type": " ".join([annotation, *limits]),
                "default": default,
                "description": field.description or meanings.get(key, ""),
            }
        )
    return rows


def _plain(annotation: Any) -> str:
    from typing import get_args, get_origin

    arguments = get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return _plain(arguments[0])
    if not arguments:
        return getattr(annotation, "__name__", str(annotation)).replace("Ellipsis", "...")
    parts = ["..." if a is Ellipsis else _plain(a) for a in arguments]
    origin = get_origin(annotation)
    if getattr(origin, "__name__", "") in ("UnionType", "Union"):
        return " | ".join(parts)
    return f"{getattr(origin, '__name__', origin)}[{', '.join(parts)}]"


def _meanings(text: str) -> dict[str, str]:
    """The ``Attributes:`` section of a docstring, as field to text."""
    _, _, section = text.partition("Attributes:\n")
    found: dict[str, str] = {}
    last = ""
    for line in section.splitlines():
        if line.startswith("        ") and last:
            found[last] += " " + line.strip()
        elif ":" in line:
            last, _, meaning = line.strip().partition(":")
            found[last] = meaning.strip()
    return {k: v.replace("``", "") for k, v in found.items()}
