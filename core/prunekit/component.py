"""Components: a name, typed options. What every plugin is.

A component is a class with a ``name`` and an ``Options`` model; the engine builds it from the spec. Nothing here
imports torch, so a plugin's options can be listed and a spec checked in an instant.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic_core import CoreSchema
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]
"""Parameter name to tensor."""


class Options(BaseModel):
    """Options of a component: a frozen pydantic model that rejects unknown keys.

    The engine takes ``name`` itself, and ``lambda`` for criteria, ``checkpoint`` for models, ``split_seed`` for data sets.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Each key is described by the class's own documentation, so that editors show it."""
        found = handler(schema)
        resolved = handler.resolve_ref_schema(found)
        about = meanings(cls)
        for key, field in resolved.get("properties", {}).items():
            if "description" not in field and key in about:
                field["description"] = about[key]
        return found


def summary(cls: type[Any]) -> str:
    """The first sentence of a class's documentation, without markup."""
    return " ".join(_plain(inspect.getdoc(cls) or "").partition("\n\n")[0].split())


def meanings(options: type[Any]) -> dict[str, str]:
    """The ``Attributes:`` sections of a class and its bases, as attribute to text without markup."""
    found: dict[str, str] = {}
    for cls in reversed(options.__mro__):
        _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
        last = ""
        for line in section.splitlines():
            if line and not line.startswith(" "):
                break
            if line.startswith("        ") and last:
                found[last] += " " + line.strip()
            elif ":" in line:
                last, _, meaning = line.strip().partition(":")
                found[last] = meaning.strip()
    return {key: _plain(text) for key, text in found.items()}


def _plain(text: str) -> str:
    """A docstring without its markup."""
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "`")


BaseOptions = Options  # inside the classes below, the name means their own options


class Component:
    """Something with a name and typed options."""

    name: ClassVar[str]
    kind: ClassVar[str]
    runs_code: ClassVar[bool] = False
    """Whether an option names Python to run, so that a stranger's spec that chooses it is a stranger's program."""
    Options: ClassVar[type[BaseOptions]] = Options
    options: Any  # an instance of the class's own Options

    def __init__(self, **options: Any) -> None:
        # Strictness is for specs: in Python a str for a Path or a list for a tuple is no mistake.
        self.options = _located(self.Options.model_validate(options, strict=False), Path())

    @classmethod
    def from_options(cls, options: BaseOptions, base: Path | None = None) -> Self:
        """Build from validated options; relative paths among them start at ``base``, ``~`` is the home folder."""
        component = cls.__new__(cls)
        component.options = _located(options, base or Path())
        return component

    def files(self) -> Sequence[Path]:
        """The files that this component reads; their contents belong to what identifies a run.

        By default those that its options name: a file itself, or every file below a folder. Override it where a
        folder holds more than is read, or where a file is found in another way; leave out files that do not exist.
        """
        paths: list[Path] = []
        for _, value in self.options:
            if isinstance(value, Path):
                paths += sorted(p for p in value.rglob("*") if p.is_file()) if value.is_dir() else [value]
        return [path for path in paths if path.is_file()]


def _located(options: BaseOptions, base: Path) -> BaseOptions:
    """Options with their paths from the working folder: what a spec calls ``~/data`` lies at home."""
    paths = {k: base / os.path.expanduser(v) for k, v in options if isinstance(v, Path)}
    return options.model_copy(update=paths) if paths else options


def scalar(value: Any) -> Any:
    """What JSON lacks, as what it has: numpy and torch scalars as numbers, paths as text."""
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} is not a number, string, list or mapping")
