"""From text and overrides to a spec in which every value is decided, checked and has a known origin."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from prunekit.component import Component, Options, scalar
from prunekit.errors import PluginError, SpecError
from prunekit.plugins.host import PluginManager, default_manager, did_you_mean
from prunekit.plugins.kinds import ENGINE_KEYS
from prunekit.pruning.scheduler import Scheduler, check_levels
from prunekit.spec import text as yaml_text
from prunekit.spec.model import SLOTS, Choice, Run
from prunekit.spec.text import Document, dotted

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Part:
    """A plugin chosen by the spec, with validated options and what the engine takes itself."""

    kind: str
    cls: type[Component]
    options: Options
    engine: Mapping[str, Any]
    base: Path

    def build(self) -> Any:
        """Construct the component; relative paths among its options start at the spec's folder."""
        return self.cls.from_options(self.options, self.base)

    @property
    def data(self) -> dict[str, Any]:
        """The whole mapping, with defaults, as JSON data."""
        return {"name": self.cls.name, **self.engine, **self.options.model_dump(mode="json")}


@dataclass(frozen=True)
class Spec:
    """A resolved spec.

    Attributes:
        run: The engine's own settings, typed.
        parts: Where a plugin stands (``("prune", "criterion")``, ``("probes", 0)``) to the plugin.
        data: Everything, with defaults filled in, as JSON data.
        origins: Dotted path of every value to ``default``, ``file`` or ``flag``.
        text: The text it was read from.
        source: Where from.
        base: Folder that relative paths start at.
    """

    run: Run
    parts: Mapping[Key, Part]
    data: dict[str, Any]
    origins: dict[str, str]
    text: str
    source: str
    base: Path

    def part(self, *path: str | int) -> Part | None:
        """The plugin at a place, if there is one."""
        return self.parts.get(path)

    @property
    def sources(self) -> list[Path]:
        """Files that the run reads: the spec, the checkpoint, whatever a plugin's options name."""
        found = [Path(self.source)]
        for part in self.parts.values():
            found += [part.base / value for _, value in part.options if isinstance(value, Path)]
            if part.engine.get("checkpoint") is not None:
                found.append(part.base / part.engine["checkpoint"])
        return found

    def listed(self, field: str) -> list[Part]:
        """The plugins of a list, in order."""
        return [part for path, part in self.parts.items() if path[0] == field]


def load(
    spec: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    manager: PluginManager | None = None,
) -> Spec:
    """Read and resolve a spec file, or a mapping of the same shape.

    Raises:
        SpecError: With every problem found, each as ``file:line:column: path: what is wrong``.
    """
    if isinstance(spec, Mapping):
        document = Document(_plain(dict(spec), "spec"), "spec")
        return resolve(document, overrides or {}, Path.cwd(), manager)
    path = Path(spec)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SpecError(f"{path}: not a text file; a spec is YAML in UTF-8") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    return resolve(yaml_text.parse(text, str(path)), overrides or {}, path.parent, manager)


def resolve(
    document: Document, overrides: Mapping[str, Any], base: Path, manager: PluginManager | None = None
) -> Spec:
    """Apply overrides, validate everything, fill in defaults and note origins."""
    manager = manager or default_manager()
    data = json.loads(json.dumps(document.data))
    flags = [_override(data, path, _plain(value, f"--set {path}")) for path, value in overrides.items()]
    if document.marks:  # read from a file
        data.setdefault("name", Path(document.source).stem)
    problems = _Problems(document, data, flags)
    inherited = _inherit_training(data)
    problems.elsewhere = [("finetune", key) for key in inherited]
    run: Run | None = None
    try:
        run = Run.model_validate_json(json.dumps(data))
    except ValidationError as error:
        problems.add(error, (), Run)
    parts = dict(_parts(data, base, manager, problems))
    _check_schedule(parts, problems)
    if problems.lines:
        raise SpecError(problems.in_order())
    assert run is not None
    resolved = _filled(run, parts)
    origins = dict(_origins(resolved, document, flags, inherited))
    return Spec(run, parts, resolved, origins, document.text, document.source, base)


class _Problems:
    """Collects problems, each with its place."""

    def __init__(self, document: Document, data: Any, flags: list[Key]) -> None:
        self.document = document
        self.data = data
        self.flags = flags
        self.elsewhere: list[Key] = []  # copies; a problem is told where it was written
        self.lines: list[tuple[tuple[int, int], str]] = []

    def say(self, path: Key, message: str) -> None:
        if path[:2] in self.elsewhere:
            return
        absent = path not in self.document.marks  # then a flag for something inside it has made it
        flag = next(
            (f for f in self.flags if f == path[: len(f)] or (absent and path == f[: len(path)])), None
        )
        where = f"--set {dotted(flag)}" if flag is not None else self.document.where(path)
        text = f"{where}: {dotted(path) or 'spec'}: {message}"
        self.lines.append((self.document.marks.get(path, self.document.marks.get(path[:-1], (0, 0))), text))

    def in_order(self) -> list[str]:
        """The lines, from the top of the file to its end."""
        return [text for _, text in sorted(self.lines, key=lambda line: line[0])]

    def add(
        self, error: ValidationError, prefix: Key, model: type[BaseModel], extra: tuple[str, ...] = ()
    ) -> None:
        for item in error.errors(include_url=False):
            path, owner = self._place(item, prefix, model)
            kind = item["type"]
            found = item.get("input")
            if kind == "extra_forbidden":
                names = [*extra, *(owner.model_fields if owner else ())]
                key = str(path[-1])
                near = did_you_mean(key, names)
                self.say(
                    path,
                    f"unknown key {key!r}{near}{'' if near else '.'} Accepted: {', '.join(names) or 'none'}.",
                )
            elif kind == "missing":
                self.say(path, f"missing, and required{_describe(owner, path)}")
            elif kind in ("union_tag_invalid", "union_tag_not_found"):
                context = item.get("ctx", {})
                names = str(context.get("expected_tags", "")).replace("'", "").split(", ")
                if not context.get("expected_tags") and owner is not None:
                    names = _tags(owner, path)
                tag = context.get("tag")
                near = did_you_mean(str(tag), names) or "."
                what = f"unknown name {tag!r}{near}" if tag else "has no name."
                self.say((*path, "name"), f"{what} Accepted: {', '.join(names)}.")
            elif kind == "value_error":
                self.say(path, f"{item['ctx']['error']!s}; found {_show(found)}")
            else:
                self.say(path, f"{_must(item['msg'])}; found {_show(found)}")

    def _place(self, item: Any, prefix: Key, model: type[BaseModel]) -> tuple[Key, type[BaseModel] | None]:
        """Map pydantic's location, which also names union branches, to a path in the data."""
        path: list[str | int] = list(prefix)
        here = _at(self.data, prefix)
        owner: type[BaseModel] | None = model
        location = item["loc"]
        for depth, part in enumerate(location):
            last = depth == len(location) - 1
            inside = (isinstance(here, dict) and part in here) or (
                isinstance(here, list) and isinstance(part, int) and part < len(here)
            )
            if inside:
                path.append(part)
                if not (last and item["type"] == "extra_forbidden"):
                    owner = _model_at(owner, part, here[part])
                here = here[part]
            elif last and item["type"] == "missing":
                path.append(part)
        return tuple(path), owner


def _at(data: Any, path: Key) -> Any:
    for part in path:
        data = data[part]
    return data


def _model_at(owner: type[BaseModel] | None, part: str | int, value: Any) -> type[BaseModel] | None:
    if owner is None or not isinstance(part, str) or part not in owner.model_fields:
        return None if isinstance(part, str) else owner
    found = [m for m in _models(owner.model_fields[part].annotation)]
    name = value.get("name") if isinstance(value, dict) else None
    for model in found:
        tag = model.model_fields.get("name")
        if tag is not None and name in get_args(tag.annotation):
            return model
    return found[0] if len(found) == 1 else None


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _tags(owner: type[BaseModel], path: Key) -> list[str]:
    """Names that a mapping told apart by its name may have."""
    field = owner.model_fields.get(str(path[-1]))
    annotation: Any = field.annotation if field is not None else None
    tags: list[Any] = [
        m.model_fields["name"].annotation for m in _models(annotation) if "name" in m.model_fields
    ]
    return [str(name) for tag in tags for name in get_args(tag)]


def _describe(owner: type[BaseModel] | None, path: Key) -> str:
    field = owner.model_fields.get(str(path[-1])) if owner is not None else None
    if field is None:
        return ""
    annotation: Any = field.annotation
    models = list(_models(annotation))
    if Choice in models:
        what = "a name, or a mapping with a name"
    else:
        what = {float: "a number", int: "a whole number", str: "text"}.get(
            annotation, "a mapping" if models else ""
        )
    limits = [
        f"{words} {getattr(m, attribute)}"
        for m in field.metadata
        for attribute, words in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if getattr(m, attribute, None) is not None
    ]
    text = ", ".join(filter(None, [what, *limits]))
    return f": {text}" if text else ""


def _must(message: str) -> str:
    text = re.sub(r"^\w+ should", "must", message).replace("Value error, ", "")
    return text.replace("an object", "a mapping").replace("a valid array", "a list")


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _plain(value: Any, where: str) -> Any:
    """A copy as JSON data.

    Raises:
        SpecError: If something else is among it.
    """
    try:
        return json.loads(json.dumps(value, default=scalar))
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError(f"{where}: must be plain data (mappings, lists, text, numbers): {error}") from None


def _override(data: Any, dotted_path: str, value: Any) -> Key:
    """Set one value, making mappings on the way; a plugin given by name alone becomes a mapping."""
    path: list[str | int] = []
    here: Any = data
    parts = dotted_path.split(".")
    if not all(parts):
        raise SpecError(f"--set {dotted_path}: a path is names joined by dots, such as prune.scheduler.steps")
    for depth, part in enumerate(parts):
        key: Any = part
        if isinstance(here, list):
            if not part.isdigit() or int(part) >= len(here):
                raise SpecError(
                    f"--set {dotted_path}: {dotted(tuple(path))} is a list of {len(here)}; "
                    f"{part!r} is not one of its positions (from 0)"
                )
            key = int(part)
        path.append(key)
        if depth == len(parts) - 1:
            here[key] = value
            break
        following = here[key] if isinstance(here, list) else here.get(key)
        if isinstance(following, str):
            following = {"name": following}
        elif following is None:
            following = {}
        elif not isinstance(following, dict | list):
            raise SpecError(
                f"--set {dotted_path}: {dotted(tuple(path))} is {_show(following)}, with nothing inside it to set"
            )
        here[key] = following
        here = following
    return tuple(path)


def _inherit_training(data: Any) -> list[str]:
    """Fill fine-tuning from ``train``; returns the keys that came from there.

    A mapping without a name, as ``--set finetune.optimizer.lr=…`` leaves it, takes name and the rest too.
    """
    train, finetune = data.get("train"), data.get("finetune")
    if not isinstance(train, dict) or not isinstance(finetune, dict):
        return []
    missing = [key for key in train if key not in finetune]
    for key in missing:
        finetune[key] = train[key]
    for key in ("optimizer", "lr_scheduler"):
        own, other = finetune.get(key), train.get(key)
        if isinstance(own, dict) and "name" not in own and isinstance(other, dict | str):
            finetune[key] = {**({"name": other} if isinstance(other, str) else other), **own}
    return missing


def _parts(data: Any, base: Path, manager: PluginManager, problems: _Problems) -> Iterator[tuple[Key, Part]]:
    for path, kind in SLOTS:
        node = data
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        entries: list[tuple[Key, Any]]
        if path == ("probes",) or path == ("recorders",):
            if node is None and path == ("recorders",):
                node = ["hdf5"]
            entries = [((*path, i), item) for i, item in enumerate(node if isinstance(node, list) else [])]
        elif path == ("prune", "selector") and node is None:
            entries = [(path, "global")]
        else:
            entries = [] if node is None else [(path, node)]
        names: list[str] = []
        for place, entry in entries:
            found = _part(place, kind, entry, base, manager, problems)
            if found is not None:
                if found.cls.name in names:
                    problems.say(place, f"{kind} {found.cls.name!r} is listed twice; once is enough")
                names.append(found.cls.name)
                yield place, found


def _part(
    path: Key, kind: str, entry: Any, base: Path, manager: PluginManager, problems: _Problems
) -> Part | None:
    mapping = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(mapping, dict) or not isinstance(mapping.get("name"), str):
        return None  # the engine's own model has said what is wrong
    taken = ENGINE_KEYS.get(kind, {})
    engine = {k: mapping.get(k, schema["default"]) for k, schema in taken.items()}
    _check_engine_keys(path, engine, problems)
    try:
        cls = manager.get(kind, mapping["name"])
    except PluginError as error:
        problems.say((*path, "name") if isinstance(entry, dict) else path, str(error))
        return None
    options = {k: v for k, v in mapping.items() if k != "name" and k not in taken}
    try:
        validated = cls.Options.model_validate_json(json.dumps(options))
    except ValidationError as error:
        problems.add(error, path, cls.Options, tuple(taken))
        return None
    return Part(kind, cls, validated, engine, base)


def _check_engine_keys(path: Key, engine: dict[str, Any], problems: _Problems) -> None:
    lam = engine.get("lambda", 0.0)
    if isinstance(lam, bool) or not isinstance(lam, int | float) or not math.isfinite(lam) or lam < 0:
        problems.say((*path, "lambda"), f"must be a finite number >= 0; found {_show(lam)}")
    elif "lambda" in engine:
        engine["lambda"] = float(lam)
    checkpoint = engine.get("checkpoint")
    if checkpoint is not None and not isinstance(checkpoint, str):
        problems.say((*path, "checkpoint"), f"must be a file's path; found {_show(checkpoint)}")


def _check_schedule(parts: Mapping[Key, Part], problems: _Problems) -> None:
    part = parts.get(("prune", "scheduler"))
    if part is not None:
        try:
            scheduler: Scheduler = part.build()
            if not scheduler.adapts:
                check_levels(scheduler.levels())
        except ValueError as error:
            problems.say(("prune", "scheduler"), str(error))


def _filled(run: Run, parts: Mapping[Key, Part]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(run.model_dump_json())
    for path, part in parts.items():
        if path[0] in ("probes", "recorders"):
            data[str(path[0])][path[1]] = part.data
        else:
            _at(data, path[:-1])[path[-1]] = part.data
    return data


def _origins(
    data: Any, document: Document, flags: list[Key], inherited: list[str], path: Key = ()
) -> Iterator[tuple[str, str]]:
    if isinstance(data, dict | list) and data:
        items = data.items() if isinstance(data, dict) else enumerate(data)
        for key, value in items:
            yield from _origins(value, document, flags, inherited, (*path, key))
        return
    source = path
    if len(path) > 1 and path[0] == "finetune" and path[1] in inherited:
        source = ("train", *path[1:])
    if any(flag == source[: len(flag)] for flag in flags):
        yield dotted(path), "flag"
    elif _given(document.data, source):
        yield dotted(path), "file"
    else:
        yield dotted(path), "default"


def _given(data: Any, path: Key) -> bool:
    here: Any = data
    for part in path:
        if isinstance(here, str):  # a plugin given by name alone
            return part == "name"
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True
