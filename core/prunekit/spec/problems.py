"""Collect what is wrong with a spec: every problem at once, each with its place and what would be accepted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from prunekit.plugins.host import did_you_mean
from prunekit.records import Plain
from prunekit.spec.model import Choice
from prunekit.spec.text import Document, Key, dotted


class Problems:
    """Collects problems, each with its place.

    Attributes:
        elsewhere: Places whose values are copies: a problem is told where it was written.
        lines: Where a problem stands in the text, and what it is.
    """

    def __init__(self, document: Document, data: Plain, flags: list[Key]) -> None:
        self.document = document
        self.data = data
        self.flags = flags
        self.elsewhere: list[Key] = []
        self.lines: list[tuple[tuple[int, int], str]] = []

    def say(self, path: Key, message: str) -> None:
        """Tell what is wrong at a place."""
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
        """Tell what a model found wrong.

        Args:
            error: What it raised.
            prefix: Where its data stand.
            model: The model.
            extra: Keys beside the model's, which the engine takes itself.
        """
        for item in error.errors(include_url=False):
            path, owner = self._place(item, prefix, model)
            kind = item["type"]
            value = item.get("input")
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
                self.say(path, f"{item['ctx']['error']!s}; found {shown(value)}")
            else:
                self.say(path, f"{_must(item['msg'])}; found {shown(value)}")

    def _place(self, item: Plain, prefix: Key, model: type[BaseModel]) -> tuple[Key, type[BaseModel] | None]:
        """Map pydantic's location, which also names union branches, to a path in the data."""
        path: list[str | int] = list(prefix)
        here = at(self.data, prefix)
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


def at(data: Plain, path: Key) -> Plain:
    """What stands at a place."""
    for part in path:
        data = data[part]
    return data


def _model_at(owner: type[BaseModel] | None, part: str | int, value: Plain) -> type[BaseModel] | None:
    if owner is None or not isinstance(part, str) or part not in owner.model_fields:
        return None if isinstance(part, str) else owner
    models = [m for m in _models(owner.model_fields[part].annotation)]
    name = value.get("name") if isinstance(value, dict) else None
    for model in models:
        tag = model.model_fields.get("name")
        if tag is not None and name in get_args(tag.annotation):
            return model
    return models[0] if len(models) == 1 else None


def _models(annotation: Plain) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _tags(owner: type[BaseModel], path: Key) -> list[str]:
    """Names that a mapping told apart by its name may have."""
    field = owner.model_fields.get(str(path[-1]))
    annotation: Plain = field.annotation if field is not None else None
    tags: list[Any] = [
        m.model_fields["name"].annotation for m in _models(annotation) if "name" in m.model_fields
    ]
    return [str(name) for tag in tags for name in get_args(tag)]


def _describe(owner: type[BaseModel] | None, path: Key) -> str:
    field = owner.model_fields.get(str(path[-1])) if owner is not None else None
    if field is None:
        return ""
    annotation: Plain = field.annotation
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


def shown(value: Plain) -> str:
    """A value as messages show it."""
    text = json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
