"""What a sweep runs: a base, values of parameters, and which combinations of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from prunekit.component import Component, Options
from prunekit.errors import PluginError, SpecError
from prunekit.executor import Executor
from prunekit.plugins.host import PluginManager, default_manager
from prunekit.records import Plain, Row
from prunekit.spec import Spec
from prunekit.spec.later import without_later
from prunekit.spec.problems import Problems
from prunekit.spec.resolve import resolve
from prunekit.spec.text import Document, parse

_MOST = 100_000
_WITHOUT_EFFECT = ("name", "recorders")
_KEY = 16
"""Digits of the name of a run's file."""

Combination = dict[str, Plain]
"""Dotted path in the spec to a value."""


class Values(Options):
    """The values of a parameter: a list, or whole numbers."""

    values: list[Any] | None = Field(None, min_length=1, description="In their order.")
    range: Annotated[list[int], Field(min_length=1, max_length=3)] | None = Field(
        None, description="As Python's: stop; start and stop; start, stop and step."
    )

    @model_validator(mode="after")
    def _one(self) -> Values:
        if (self.values is None) == (self.range is None):
            raise ValueError("takes either values or range")
        if self.range is not None and not self.listed():
            raise ValueError(f"range {self.range} has no numbers")
        return self

    def listed(self) -> list[Plain]:
        """All of them."""
        return list(self.values) if self.values is not None else list(range(*(self.range or [0])))


class SweepSettings(Options):
    """A sweep, as its file says it."""

    version: Annotated[int, Field(ge=1, le=1)] = 1
    base: str | dict[str, Any] = Field(
        description="A spec, or the path of one, relative to the sweep's own folder."
    )
    parameters: dict[str, Values] = Field(
        default_factory=dict, description="Dotted path in the spec to values."
    )
    zip: list[Annotated[list[str], Field(min_length=2)]] = Field(
        default_factory=list, description="Parameters that go together, value by value."
    )
    exclude: list[dict[str, Any]] = Field(
        default_factory=list, description="Leave out combinations that have all of these values."
    )
    only: list[dict[str, Any]] = Field(
        default_factory=list, description="Keep combinations that have all values of one of these."
    )
    seeds: Annotated[int, Field(ge=1)] | list[int] | None = Field(
        None, description="Run every combination with each of these seeds, or with as many, from 0."
    )
    threads: Annotated[int, Field(ge=1)] = Field(
        1, description="Threads of torch in each worker; set here, as they decide the last bits of float32."
    )
    executor: str | dict[str, Any] | None = Field(
        None, description="Starts the workers: a name, or a mapping with a name and options."
    )


@dataclass(frozen=True)
class Planned:
    """A run of a sweep.

    Attributes:
        key: The name of its file, without the suffix; derived from the spec's values.
        parameters: What makes it another run than the others.
        spec: Resolved.
    """

    key: str
    parameters: Combination
    spec: Spec


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep.

    Attributes:
        source: The sweep's file.
        text: Its text.
        runs: In their order.
        threads: Of torch in each worker.
        executor: What starts the workers, if the file says so.
    """

    source: Path
    text: str
    runs: tuple[Planned, ...]
    threads: int
    executor: Executor | None


Told = Callable[[Planned, str], None]
"""Called with a run and what became of it: ``started``, ``complete``, ``failed``."""


def load(path: Path, manager: PluginManager | None = None) -> Plan:
    """Read a sweep and every spec in it.

    Raises:
        SpecError: With every problem of the sweep, each with its place, or of the first spec that has some.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file; a sweep is YAML in UTF-8"
        raise SpecError(f"{path}: cannot be read: {reason}") from None
    manager = manager or default_manager()
    document = parse(text, str(path))
    settings = _settings(document)
    executor = _executor(settings, document, manager)
    base, folder = _base(settings, path)
    runs: dict[str, Planned] = {}
    for combination in _combinations(settings, path):
        spec = _resolved(base, combination, folder, manager)
        key = _key(spec)
        runs.setdefault(key, Planned(key, combination, spec))
    if not runs:
        raise SpecError(f"{path}: no combination is left; loosen exclude and only")
    return Plan(path, text, tuple(runs.values()), settings.threads, executor)


def executor_of(name: str, manager: PluginManager) -> Executor:
    """An executor with its options' defaults.

    Raises:
        SpecError, PluginError: If there is none of that name, or it has an option without a default.
    """
    found = manager.get("executor", name)
    try:
        return _built(found, found.Options())
    except ValidationError as error:
        missing = ", ".join(str(item["loc"][0]) for item in error.errors())
        raise SpecError(f"executor {name}: needs {missing}; give them in the sweep, under executor") from None


def _built(cls: type[Component], options: Options) -> Executor:
    executor = cls.from_options(options)
    assert isinstance(executor, Executor)  # as the host has seen to
    return executor


def _executor(settings: SweepSettings, document: Document, manager: PluginManager) -> Executor | None:
    given = settings.executor
    if given is None:
        return None
    options = {"name": given} if isinstance(given, str) else dict(given)
    problems, name = Problems(document, document.data, []), options.pop("name", None)
    if not isinstance(name, str):
        problems.say(("executor",), f"needs a name; there are {', '.join(manager.names('executor'))}")
        raise SpecError(problems.in_order())
    try:
        found = manager.get("executor", name)
        return _built(found, found.Options.model_validate_json(json.dumps(options)))
    except PluginError as error:
        problems.say(("executor",), str(error))
    except ValidationError as error:
        problems.add(error, ("executor",), found.Options, extra=("name",))
    raise SpecError(problems.in_order()) from None


def _settings(document: Document) -> SweepSettings:
    problems = Problems(document, document.data, [])
    try:
        # By JSON, as for specs: what JSON cannot say, a sweep cannot either.
        settings = SweepSettings.model_validate_json(json.dumps(document.data))
    except ValidationError as error:
        problems.add(error, (), SweepSettings)
        raise SpecError(problems.in_order()) from None
    named, zipped = set(settings.parameters), [name for group in settings.zip for name in group]
    if settings.seeds is not None and "seed" in named:
        problems.say(("seeds",), "the parameter seed has values already; give one of them")
    for name in dict.fromkeys(zipped):
        if name not in named:
            problems.say(("zip",), f"{name}: is not a parameter; there are {', '.join(named) or 'none'}")
        elif zipped.count(name) > 1:
            problems.say(
                ("zip",), f"{name}: is listed more than once; a parameter goes together with others once"
            )
    for group in settings.zip:
        sizes = {name: len(settings.parameters[name].listed()) for name in group if name in named}
        if len(set(sizes.values())) > 1:
            problems.say(
                ("zip",),
                f"{', '.join(f'{n} has {size}' for n, size in sizes.items())} values; all must have as many",
            )
    known = named | ({"seed"} if settings.seeds is not None else set())
    for place in ("exclude", "only"):
        for i, given in enumerate(getattr(settings, place)):
            for name in given.keys() - known:
                problems.say(
                    (place, i), f"{name}: is not a parameter; there are {', '.join(sorted(known)) or 'none'}"
                )
    if problems.lines:
        raise SpecError(problems.in_order())
    return settings


def _base(settings: SweepSettings, path: Path) -> tuple[Document, Path]:
    """The base's document, and where its relative paths start."""
    if not isinstance(settings.base, str):
        return Document(settings.base, f"{path}: base"), path.parent
    file = path.parent / Path(settings.base).expanduser()
    try:
        return parse(file.read_text(encoding="utf-8"), str(file)), file.parent
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"{path}: base: {file}: cannot be read: {getattr(error, 'strerror', error)}"
        ) from None


def _combinations(settings: SweepSettings, path: Path) -> Iterator[Combination]:
    together = {name: group for group in settings.zip for name in group}
    axes: list[list[Combination]] = []
    for name, given in settings.parameters.items():
        group = together.get(name, [name])
        if name == group[0] or name not in together:
            columns = [settings.parameters[one].listed() for one in group]
            axes.append([dict(zip(group, row, strict=True)) for row in zip(*columns, strict=True)])
        elif given is None:
            raise AssertionError(name)
    if settings.seeds is not None:
        seeds = settings.seeds if isinstance(settings.seeds, list) else range(settings.seeds)
        axes.append([{"seed": seed} for seed in seeds])
    count = 1
    for axis in axes:
        count *= len(axis)
    if count > _MOST:
        raise SpecError(f"{path}: {count:,} combinations; a sweep has at most {_MOST:,}")
    for parts in product(*axes):
        whole: Combination = {}
        for part in parts:
            whole |= part
        if _fits(whole, settings.only, True) and not _fits(whole, settings.exclude, False):
            yield whole


def _fits(combination: Combination, filters: Sequence[Row], otherwise: bool) -> bool:
    """Whether it has all values of one of the filters."""
    if not filters:
        return otherwise
    return any(all(combination[name] == value for name, value in one.items()) for one in filters)


def _resolved(base: Document, combination: Combination, folder: Path, manager: PluginManager) -> Spec:
    try:
        return resolve(base, combination, folder, manager)
    except SpecError as error:
        values = ", ".join(f"{name}={json.dumps(value)}" for name, value in combination.items())
        raise SpecError([f"{problem} (with {values})" for problem in error.problems]) from None


def _key(spec: Spec) -> str:
    values = without_later({k: v for k, v in spec.data.items() if k not in _WITHOUT_EFFECT})
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY]
