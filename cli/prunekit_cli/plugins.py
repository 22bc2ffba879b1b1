"""``prunekit plugins`` and ``prunekit plugins show``."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from prunekit.records import Plain
from prunekit_cli import console

if TYPE_CHECKING:
    from prunekit.component import Component
    from prunekit.plugins.host import Plugin, PluginManager


def listing(as_json: bool) -> None:
    """Every component and every plugin that supplies none because it is broken or blocked."""
    from prunekit.plugins.host import default_manager

    with console.only_results():
        manager = default_manager()
    rows: list[dict[str, Plain]] = []
    for plugin in manager.plugins:
        for component in plugin.components:
            conflict = _conflict(manager, component.kind, component.name)
            row = _origin(plugin) | {"status": "conflict" if conflict else plugin.status, "error": conflict}
            rows.append({"kind": component.kind, "name": component.name, **row})
        if not plugin.components:
            row = _origin(plugin) | {"status": plugin.status, "error": plugin.error or None}
            rows.append({"kind": None, "name": None, **row})
    rows.sort(key=lambda r: (r["kind"] or "~", r["name"] or "", r["distribution"], r["plugin"]))
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    columns = ["kind", "name", "plugin", "distribution", "version", "status"]
    _table(columns, [[r[c] or "–" for c in columns] for r in rows])
    conflicts = dict.fromkeys(r["error"] for r in rows if r["status"] == "conflict")
    for text in [*conflicts, *_troubles(manager)]:
        print(text, file=sys.stderr)


def show(name: str, as_json: bool) -> None:
    """A component's documentation, origin and options; or what became of a plugin."""
    from prunekit.errors import PluginError
    from prunekit.plugins.host import default_manager, did_you_mean
    from prunekit.plugins.kinds import KINDS

    with console.only_results():
        manager = default_manager()
    providers = [(p, c) for kind in KINDS for p, c in manager.providers(kind, name)]
    named = [] if providers else [p for p in manager.plugins if name in p.names]
    if not providers and not named:
        names = {n for kind in KINDS for n in manager.names(kind)} | {
            n for p in manager.plugins for n in p.names
        }
        first = f"nothing is called {name!r}{did_you_mean(name, sorted(names)) or '.'}"
        raise PluginError(
            "\n".join([f"{first} `prunekit plugins` lists what there is.", *_troubles(manager)])
        )
    with console.only_results():
        described = [record_of(p, c) for p, c in providers] + [_plugin(p) for p in named]
    if as_json:
        print(json.dumps(described, indent=1))
        return
    for i, item in enumerate(described):
        if i:
            print()
        (_print_component if providers else _print_plugin)(item)
    for kind in dict.fromkeys(c.kind for _, c in providers):
        conflict = _conflict(manager, kind, name)
        if conflict:
            print(f"\n{conflict}", file=sys.stderr)


def record_of(plugin: Plugin, component: type[Component]) -> dict[str, Plain]:
    """A component as ``show --json`` prints it: documentation, origin and options."""
    return {
        "kind": component.kind,
        "name": component.name,
        "class": plugin.provides(component),
        **_origin(plugin),
        "description": inspect.getdoc(component) or "",
        "requires": _requires(component),
        "options": _options(component),
    }


def _plugin(plugin: Plugin) -> dict[str, Plain]:
    return {
        **_origin(plugin),
        "status": plugin.status,
        "error": plugin.error or None,
        "traceback": plugin.trace or None,
        "components": [{"kind": c.kind, "name": c.name} for c in plugin.components],
    }


def _print_component(item: dict[str, Plain]) -> None:
    print(f"{item['kind']} {item['name']}")
    print(f"from {item['class']}, plugin {item['plugin']!r} of {item['distribution']} {item['version']}")
    if item["description"]:
        print(f"\n{_plain(item['description'])}")
    if item["requires"]:
        print(f"\nStatistics: {', '.join(item['requires'])}")
    if not item["options"]:
        print("\nNo options.")
        return
    print("\nOptions:")
    columns = ["name", "type", "default", "description"]
    rows = [[o[c] for c in columns] for o in item["options"]]
    _table(["option", "type", "default", "meaning"], rows)


def _print_plugin(item: dict[str, Plain]) -> None:
    print(f"plugin {item['plugin']}: {item['status']}")
    print(f"from module {item['module']} of {item['distribution']} {item['version']}")
    if item["components"]:
        supplied = [f"{c['kind']} {c['name']}" for c in item["components"]]
        print(f"\nSupplies: {', '.join(supplied)}")
    if item["error"]:
        print(f"\nIt {item['error']}")
    if item["traceback"]:
        print(f"\n{item['traceback'].rstrip()}")


def _origin(plugin: Plugin) -> dict[str, Plain]:
    return {
        "plugin": plugin.name,
        "module": plugin.module,
        "distribution": plugin.distribution,
        "version": plugin.version,
    }


def _troubles(manager: PluginManager) -> list[str]:
    lines = []
    for plugin in manager.plugins:
        if plugin.status == "broken":
            more = f" `prunekit plugins show {plugin.name}` shows the traceback." if plugin.trace else ""
            lines.append(plugin.trouble + more)
    return lines


def _conflict(manager: PluginManager, kind: str, name: str) -> str | None:
    from prunekit.errors import PluginError

    try:
        manager.get(kind, name)
    except PluginError as error:
        return str(error)
    return None


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    console.stdout().print(console.table(None, columns, list(rows), left=len(columns)))


def _requires(component: type[Component]) -> list[str]:
    """Statistics that a criterion asks for with its default options; they may depend on these."""
    from prunekit import Statistic

    if component.kind != "criterion":
        return []
    try:
        requires: Any = component().requires  # type: ignore[attr-defined]
    except Exception:  # an option has no default
        return []
    statistics = map(Statistic.of, requires)
    return sorted(" ".join([s.name, *(f"{k}={v}" for k, v in s.options.items())]) for s in statistics)


_ENGINE_TYPES = {
    "lambda": "float ≥ 0",
    "checkpoint": "path | null",
    "split_seed": "int ≥ 0",
    "label": "text | null",
    "moments": "list | null",
}


def _options(component: type[Component]) -> list[dict[str, str]]:
    from prunekit.component import meanings
    from prunekit.plugins.kinds import KINDS

    about = meanings(component.Options)
    rows = [
        {
            "name": key,
            "type": _ENGINE_TYPES.get(key, "any"),
            "default": json.dumps(schema["default"]),
            "description": str(schema["description"]),
        }
        for key, schema in KINDS[component.kind].keys.items()
    ]
    for key, field in component.Options.model_fields.items():
        rows.append(
            {
                "name": field.alias or key,
                "type": _type(field.annotation, field.metadata),
                "default": "required" if field.is_required() else _default(field),
                "description": _plain(field.description or about.get(key, "")),
            }
        )
    return rows


def _default(field: Any) -> str:
    return json.dumps(field.get_default(call_default_factory=True), default=str, ensure_ascii=False)


_WORDS: dict[Any, str] = {NoneType: "null", Path: "path", Any: "any", tuple: "list"}


def _type(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """A type as a spec's author needs it: ``int ≥ 1 | null``, ``list[float]``, ``ggn | hessian``."""
    bounds = [
        f"{sign} {getattr(m, attribute):g}"
        for m in metadata
        for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if isinstance(getattr(m, attribute, None), int | float)
    ]
    limits = f" {', '.join(bounds)}" if bounds else ""
    origin: Any = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0], arguments[1:]) + limits
    if origin is Literal:
        return " | ".join("null" if a is None else str(a) for a in arguments)
    if origin in (Union, UnionType):
        parts = [_type(a) for a in arguments if a is not NoneType]
        return " | ".join(parts) + limits + (" | null" if NoneType in arguments else "")
    if origin is not None:
        items = [_type(a) for a in arguments if a is not Ellipsis]
        # YAML has lists only; a tuple of fixed length shows every item.
        outer = "list" if origin in (tuple, set, frozenset) else getattr(origin, "__name__", str(origin))
        return f"{outer}[{', '.join(items)}]{limits}"
    return str(_WORDS.get(annotation) or getattr(annotation, "__name__", annotation)) + limits


def _plain(text: str) -> str:
    """A docstring without its markup."""
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "`")
