"""From text and overrides to a spec in which every value is decided, checked and has a known origin."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from prunekit.component import Component, Options
from prunekit.errors import PluginError, SpecError
from prunekit.observing.probe import Moments
from prunekit.plugins.host import PluginManager, default_manager
from prunekit.plugins.kinds import KINDS, LABEL, METRIC_LABEL, TAKEN
from prunekit.pruning.criterion import locality_weight
from prunekit.pruning.scheduler import Scheduler, check_levels
from prunekit.pruning.until import Until
from prunekit.records import Plain, Row
from prunekit.spec import text as yaml_text
from prunekit.spec.model import Seeds, Settings
from prunekit.spec.overrides import (
    inherit_dtype,
    inherit_seeds,
    inherit_training,
    origins_of,
    override,
    plain,
    refuse_dropped,
)
from prunekit.spec.problems import Problems, at, shown
from prunekit.spec.text import Document, Key
from prunekit.units import readable_bytes

_MOST = 1 << 22  # bytes of a spec


@dataclass(frozen=True)
class Part:
    """A plugin chosen by the spec, with validated options and what the engine takes itself.

    Attributes:
        kind: Such as ``criterion``.
        cls: The plugin's class.
        base: Folder that relative paths start at.
    """

    kind: str
    cls: type[Component]
    base: Path
    _options: Options = field(repr=False, hash=False)
    _engine: Row = field(repr=False, hash=False)

    @property
    def options(self) -> Options:
        """The options, a copy: an option may be a mapping, which a frozen model cannot freeze."""
        return self._options.model_copy(deep=True)

    @property
    def engine(self) -> Row:
        """What the engine takes itself, with defaults; a copy."""
        return MappingProxyType(deepcopy(dict(self._engine)))

    @property
    def paths(self) -> dict[str, Path]:
        """Options that are paths, as they were written."""
        return {name: value for name, value in self._options if isinstance(value, Path)}

    @property
    def data(self) -> dict[str, Plain]:
        """The whole mapping, with defaults, as JSON data; a copy."""
        return {"name": self.cls.name, **self.engine, **self._options.model_dump(mode="json")}

    def locate(self, written: str | Path) -> Path:
        """Where a path that the spec gives lies: relative ones start at the spec's folder, ``~`` is the home folder."""
        return self.base / os.path.expanduser(written)

    def build(self) -> Any:
        """Construct the component; relative paths among its options start at the spec's folder."""
        return self.cls.from_options(self.options, self.base)


@dataclass(frozen=True)
class Spec:
    """A resolved spec. It never changes, and neither does anything that it hands out: that is frozen or a copy.

    Attributes:
        settings: The engine's own settings, typed.
        text: The text it was read from.
        source: Where from.
        base: Folder that relative paths start at.
    """

    settings: Settings
    text: str = field(repr=False)
    source: str
    base: Path
    # Tuples and text: what lies here can be pickled and compared, and no mapping of it gets out.
    _parts: tuple[tuple[Key, Part], ...] = field(repr=False)
    _data: str = field(repr=False)
    _origins: tuple[tuple[str, str], ...] = field(repr=False)

    @property
    def parts(self) -> Mapping[Key, Part]:
        """Where a plugin stands (``("prune", "criterion")``, ``("probes", 0)``) to the plugin."""
        return MappingProxyType(dict(self._parts))

    @property
    def data(self) -> dict[str, Plain]:
        """Everything, with defaults filled in, as JSON data; a copy."""
        data: dict[str, Plain] = json.loads(self._data)
        return data

    @property
    def origins(self) -> Mapping[str, str]:
        """Dotted path of every value to ``default``, ``file`` or ``flag``."""
        return MappingProxyType(dict(self._origins))

    def part(self, *path: str | int) -> Part | None:
        """The plugin at a place, if there is one."""
        return self.parts.get(path)

    @property
    def sources(self) -> list[Path]:
        """Files that the run reads: the spec, the checkpoint, whatever a plugin's options name."""
        files = [Path(self.source)]
        for part in self.parts.values():
            files += [part.locate(path) for path in part.paths.values()]
            if part.engine.get("checkpoint") is not None:
                files.append(part.locate(part.engine["checkpoint"]))
        return files

    def listed(self, field: str) -> list[Part]:
        """The plugins of a list, in order."""
        return [part for path, part in self.parts.items() if path[0] == field]


def load(
    spec: str | Path | Row,
    overrides: Row | None = None,
    manager: PluginManager | None = None,
) -> Spec:
    """Read and resolve a spec file, or a mapping of the same shape.

    Raises:
        SpecError: With every problem found, each as ``file:line:column: path: what is wrong``.
    """
    if isinstance(spec, Mapping):
        document = Document(plain(dict(spec), "spec"), "spec")
        return resolve(document, overrides or {}, Path.cwd(), manager)
    path = Path(os.path.expanduser(spec))
    try:
        with path.open("rb") as file:  # also a pipe, as a shell makes one
            raw = file.read(_MOST + 1)
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise SpecError(f"{path}: not a text file; a spec is YAML in UTF-8") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    if len(raw) > _MOST:
        raise SpecError(f"{path}: has more than {readable_bytes(_MOST)}; a spec is a page of YAML")
    return resolve(yaml_text.parse(text, str(path)), overrides or {}, path.parent, manager)


def resolve(document: Document, overrides: Row, base: Path, manager: PluginManager | None = None) -> Spec:
    """Apply overrides, validate everything, fill in defaults and note origins."""
    manager = manager or default_manager()
    refuse_dropped(overrides)
    data = plain(document.data, document.source)
    flags = [override(data, path, plain(value, f"--set {path}")) for path, value in overrides.items()]
    if document.marks:  # read from a file
        data.setdefault("name", Path(document.source).stem)
    problems = Problems(document, data, flags)
    inherited: dict[Key, Key] = {("finetune", key): ("train", key) for key in inherit_training(data)}
    inherited |= {("seeds", name): ("seed",) for name in inherit_seeds(data, Seeds.model_fields)}
    if inherit_dtype(data, manager):
        inherited["dtype",] = ("model", "dtype")
    problems.elsewhere = list(inherited)
    settings: Settings | None = None
    try:
        settings = Settings.model_validate_json(json.dumps(data))
    except ValidationError as error:
        problems.add(error, (), Settings)
    if settings is not None and settings.folder is not None:
        base = base / os.path.expanduser(settings.folder)
    parts = dict(_parts(data, base, manager, problems))
    _check_schedule(parts, problems)
    _check_dtype(data, parts, problems)
    if data.get("prune") is None and data.get("finetune") is not None:
        problems.say(
            ("finetune",),
            "has nothing to fine-tune without `prune`; `train` takes all epochs of a dense network",
        )
    if problems.lines:
        raise SpecError(problems.in_order())
    assert settings is not None
    filled = _filled(settings, parts)
    origins = tuple(origins_of(filled, document, flags, inherited))
    return Spec(
        settings, document.text, document.source, base, tuple(parts.items()), json.dumps(filled), origins
    )


def _parts(data: Plain, base: Path, manager: PluginManager, problems: Problems) -> Iterator[tuple[Key, Part]]:
    for kind, known in KINDS.items():
        path = known.slot
        if path is None or (path[0] == "prune" and data.get("prune") is None):
            continue
        node = data
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if node is None:
            node = list(known.default) if known.many else next(iter(known.default), None)
        entries: list[tuple[Key, Plain]]
        if known.many:
            entries = [((*path, i), item) for i, item in enumerate(node if isinstance(node, list) else [])]
        else:
            entries = [] if node is None else [(path, node)]
        names: list[str] = []
        for place, entry in entries:
            plugin = _part(place, kind, entry, base, manager, problems)
            if plugin is not None:
                name = plugin.engine.get("label") or plugin.cls.name
                if kind == "metric" and name in TAKEN:
                    problems.say(place, f"{name!r} is measured already; give it a label of its own")
                if name in names:
                    cure = ", or give each its own label" if "label" in known.keys else ""
                    problems.say(place, f"{kind} {name!r} is listed twice; once is enough{cure}")
                names.append(name)
                yield place, plugin


def _part(
    path: Key, kind: str, entry: Plain, base: Path, manager: PluginManager, problems: Problems
) -> Part | None:
    mapping = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(mapping, dict) or not isinstance(mapping.get("name"), str):
        return None  # the engine's own model has said what is wrong
    taken = KINDS[kind].keys
    engine = {k: mapping.get(k, schema["default"]) for k, schema in taken.items()}
    _check_engine_keys(path, kind, engine, problems)
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
    return Part(kind, cls, base, validated, engine)


def _check_engine_keys(path: Key, kind: str, engine: dict[str, Plain], problems: Problems) -> None:
    lam = engine.get("lambda", 0.0)
    try:
        lam = locality_weight(lam)
    except ValueError:
        problems.say((*path, "lambda"), f"must be a finite number >= 0; found {shown(lam)}")
    if "lambda" in engine:
        engine["lambda"] = lam
    split = engine.get("split_seed", 0)
    if isinstance(split, bool) or not isinstance(split, int) or not 0 <= split < 2**63:
        before = ", which meant the run's seed in 0.1: write the number" if split is None else ""
        problems.say((*path, "split_seed"), f"must be a whole number >= 0; found {shown(split)}{before}")
    if engine.get("until") is not None:
        try:
            until = Until.model_validate_json(json.dumps(engine["until"]))
            engine["until"] = until.model_dump(mode="json")
        except ValidationError as error:
            problems.add(error, (*path, "until"), Until)
    checkpoint = engine.get("checkpoint")
    if checkpoint is not None and not isinstance(checkpoint, str):
        problems.say((*path, "checkpoint"), f"must be a file's path; found {shown(checkpoint)}")
    label, columns = engine.get("label"), kind == "metric"
    if label is not None and columns and not (isinstance(label, str) and re.fullmatch(METRIC_LABEL, label)):
        problems.say(
            (*path, "label"), f"must be small letters, digits and _, at most 41; found {shown(label)}"
        )
        engine["label"] = None
    elif label is not None and not (isinstance(label, str) and re.fullmatch(LABEL, label)):
        problems.say(
            (*path, "label"),
            "must be text of at most 100 characters, none of them / or a control character, and not a dot; found "
            + shown(label),
        )
        engine["label"] = None
    try:
        if engine.get("moments") is not None:
            Moments.parse(engine["moments"])
    except (TypeError, ValueError) as error:
        problems.say((*path, "moments"), str(error))


def _check_schedule(parts: Mapping[Key, Part], problems: Problems) -> None:
    part = parts.get(("prune", "scheduler"))
    if part is not None:
        try:
            scheduler: Scheduler = part.build()
            if not scheduler.adapts:
                check_levels(scheduler.levels())
        except ValueError as error:
            problems.say(("prune", "scheduler"), str(error))


def _check_dtype(data: Plain, parts: Mapping[Key, Part], problems: Problems) -> None:
    """Refuse a network that is loaded in one type for a run in another."""
    part = parts.get(("model",))
    own = (
        getattr(part.options, "dtype", None)
        if part is not None and getattr(part.cls, "sets_dtype", False)
        else None
    )
    if own is not None and data.get("dtype", own) != own:
        problems.say(
            ("model", "dtype"), f"is {own}, but the run's dtype is {data['dtype']}; give one of them"
        )


def _filled(settings: Settings, parts: Mapping[Key, Part]) -> dict[str, Plain]:
    data: dict[str, Plain] = json.loads(settings.model_dump_json())
    for path, part in parts.items():
        at(data, path[:-1])[path[-1]] = part.data
    return data
