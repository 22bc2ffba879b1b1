"""Pages of the reference, made from the code: keys of a spec, commands, components, names of the Python package.

mkdocs runs this file (``.mkdocs.yml``) and ``tests/test_site.py`` checks what it makes.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TITLES = {
    "model": "Models",
    "dataset": "Data sets",
    "loss": "Losses",
    "criterion": "Criteria",
    "scheduler": "Schedulers",
    "selector": "Selectors",
    "statistic": "Statistics",
    "probe": "Probes",
    "recorder": "Recorders",
    "metric": "Metrics",
    "executor": "Executors",
}
GROUPS = {
    "Functions": lambda thing: inspect.isfunction(thing),
    "Errors and warnings": lambda thing: isinstance(thing, type) and issubclass(thing, Exception),
    "Classes": lambda thing: isinstance(thing, type),
    "Others": lambda thing: True,
}


def spec_page() -> str:
    """Every key of a spec that the engine owns; those of components are on their own page."""
    from prunekit.spec import json_schema

    schema = json_schema()
    definitions = schema["$defs"]
    sections = [("A spec", schema)]
    sections += [
        (f"`{place}`", definitions[name])
        for place, name in (
            ("seeds", "Seeds"),
            ("train", "Train"),
            ("prune", "Prune"),
            ("prune.prunable", "Prunable"),
            ("prune.sequential", "Sequential"),
            ("evaluate", "Evaluate"),
            ("train.optimizer: sgd", "SGD"),
            ("train.optimizer: adam", "Adam"),
            ("train.optimizer: adamw", "AdamW"),
            ("train.lr_scheduler: step", "Step"),
            ("train.lr_scheduler: multistep", "MultiStep"),
            ("train.lr_scheduler: cosine", "Cosine"),
        )
    ]
    lines = [
        "# Keys of a spec",
        "",
        "Made from the JSON Schema, which `prunekit schema` prints for editors. A place for a component (`model`, "
        "`prune.criterion`, a probe, …) takes a name, or a mapping with `name` and the options that "
        "[Components](components.md) lists.",
    ]
    for title, section in sections:
        lines += ["", f"## {title}", ""]
        required = section.get("required", [])
        lines += _table(
            ["key", "type", "default", "meaning"],
            (
                [f"`{key}`", _type(field), _default(field, key in required), field.get("description", "")]
                for key, field in section["properties"].items()
            ),
        )
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    """Every command with its arguments and options."""
    import typer.main

    from prunekit_cli.main import app

    lines = ["# Commands", "", "`prunekit COMMAND --help` prints the same."]

    def add(command: Any, path: str) -> None:
        lines.extend(["", f"## `{path}`", "", _sentences(command.help)])
        rows = [
            [f"`{_named(parameter)}`", _sentences(parameter.help)]
            for parameter in command.params
            if not parameter.hidden
        ]
        if rows:
            lines.extend(["", *_table(["", "meaning"], rows)])
        for name, found in getattr(command, "commands", {}).items():
            if not found.hidden:
                add(found, f"{path} {name}")

    add(typer.main.get_command(app), "prunekit")
    return "\n".join(lines) + "\n"


def components_page() -> str:
    """Every built-in component with its options."""
    from prunekit.plugins.host import PluginManager
    from prunekit.plugins.kinds import KINDS
    from prunekit_cli.plugins import record_of

    manager = PluginManager()
    lines = [
        "# Components",
        "",
        "Made from the registry: `prunekit plugins` lists what is installed, with plugins of others, and "
        "`prunekit plugins show NAME` prints an entry of this page.",
    ]
    for kind in KINDS:
        lines += ["", f"## {TITLES[kind]}"]
        for name in sorted(manager.names(kind)):
            ((plugin, component),) = manager.providers(kind, name)
            item = record_of(plugin, component)
            lines += ["", f"### `{name}` {{ #{kind}-{name} }}", "", _markdown(item["description"])]
            if item["requires"]:
                lines += ["", f"Statistics: {', '.join(f'`{r}`' for r in item['requires'])}."]
            if item["options"]:
                rows = (
                    [f"`{o['name']}`", _code(o["type"]), _code(o["default"]), o["description"]]
                    for o in item["options"]
                )
                lines += ["", *_table(["option", "type", "default", "meaning"], rows)]
    return "\n".join(lines) + "\n"


def api_page() -> str:
    """Every public name of ``prunekit``, for mkdocstrings to fill in."""
    lines = ["# Python", "", "`import prunekit as pk` loads nothing; names are imported on first use."]
    for title, names in public_names().items():
        lines += ["", f"## {title}"]
        for path in names.values():
            lines += ["", f"::: {path}"]
    return "\n".join(lines) + "\n"


def public_names() -> dict[str, dict[str, str]]:
    """Public names in groups, with where each is defined."""
    import prunekit

    source = (ROOT / "core" / "prunekit" / "__init__.pyi").read_text(encoding="utf-8")
    groups: dict[str, dict[str, str]] = {title: {} for title in GROUPS}
    for module, name in re.findall(r"^from \.([\w.]+) import (\w+) as \w+$", source, re.M):
        if name.startswith("_"):
            continue
        thing = getattr(prunekit, name)
        title = next(title for title, fits in GROUPS.items() if fits(thing))
        groups[title][name] = f"prunekit.{module}.{name}"
    return {title: names for title, names in groups.items() if names}


PAGES: dict[str, Callable[[], str]] = {
    "reference/spec.md": spec_page,
    "reference/cli.md": cli_page,
    "reference/components.md": components_page,
    "reference/python.md": api_page,
    "project/changes.md": lambda: (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    "project/contributing.md": lambda: (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
    "project/security.md": lambda: (ROOT / "SECURITY.md").read_text(encoding="utf-8"),
}


def relinked(text: str, page: str) -> str:
    """Links between files of the repository, as links between pages of the site."""
    depth = page.count("/") * "../"
    text = re.sub(r"\]\((?:\.\./)?docs/", f"]({depth}", text) if page.startswith("project/") else text
    for name, target in (
        ("CHANGELOG.md", "project/changes.md"),
        ("CONTRIBUTING.md", "project/contributing.md"),
        ("SECURITY.md", "project/security.md"),
        ("README.md", "index.md"),
    ):
        text = re.sub(rf"\]\((?:\.\./)?{re.escape(name)}", f"]({depth}{target}", text)
    # What is no page is named only.
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)(?:examples|benchmarks|tests)[^)]*\)", r"\1", text)


def _type(field: dict[str, Any]) -> str:
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " or ".join(f"`{v}`" for v in field["enum"])
    if "$ref" in field:
        return "mapping"
    if "anyOf" in field or "oneOf" in field:
        some = [_type(part) for part in field.get("anyOf", field.get("oneOf"))]
        if "mapping" in some and any("`" in part for part in some):
            return "name or mapping"
        return " or ".join(dict.fromkeys(some))
    if field.get("type") == "array":
        return "list"
    bounds = [
        f"{sign} {field[key]:g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"))
        if key in field
    ]
    words = {"integer": "int", "number": "float", "string": "text", "boolean": "true or false"}
    found = field.get("type", "any")
    return " ".join([words.get(found, found), ", ".join(bounds)]).strip()


def _default(field: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    return _code(json.dumps(field.get("default"), ensure_ascii=False))


def _named(parameter: Any) -> str:
    if parameter.param_type_name == "option":
        return ", ".join([*parameter.opts, *parameter.secondary_opts])
    return str(parameter.metavar or parameter.name).upper()


def _code(text: str) -> str:
    # A table takes what separates its cells out of code spans too, so choices have a span each.
    return " or ".join(f"`{part}`" for part in text.split(" | ")) if text else ""


def _sentences(text: str | None) -> str:
    return " ".join((text or "").replace("\b", "").split()).replace("[", "\\[")


def _markdown(docstring: str) -> str:
    """A docstring as Markdown: roles and double backquotes as code, sections as paragraphs."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", docstring).replace("``", "`")
    return re.sub(r"^(Example|Examples|Attributes|Args|Raises):$", r"**\1:**\n", text, flags=re.M)


def _table(head: list[str], rows: Iterator[list[str]] | list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = [re.sub(r"(?<!\\)\|", "\\|", cell.replace("\n", " ")) for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Write the pages, as mkdocs asks."""
    import mkdocs_gen_files

    for page, make in PAGES.items():
        with mkdocs_gen_files.open(page, "w") as file:
            file.write(relinked(make(), page))
    for path in sorted((ROOT / "docs").rglob("*.md")):
        page = path.relative_to(ROOT / "docs").as_posix()
        text = path.read_text(encoding="utf-8")
        if (other := relinked(text, page)) != text:
            with mkdocs_gen_files.open(page, "w") as file:
                file.write(other)


if __name__ == "<run_path>":  # as mkdocs-gen-files calls it
    main()
