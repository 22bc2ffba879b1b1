"""What every component promises, of whatever kind."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import ValidationError

from prunekit.component import Component, Options
from prunekit.plugins.kinds import KINDS
from prunekit.testing.verdict import Subject, demand


def has_a_name(subject: Subject[Component]) -> None:
    """A word, as specs write it, and the kind of its base class."""
    component = subject.component
    name = getattr(component, "name", None)
    demand(isinstance(name, str) and bool(name), f"name must be text; it is {name!r}")
    demand(
        bool(re.fullmatch(r"\w[\w.-]*", str(name))), f"name must be a word as specs write it; it is {name!r}"
    )
    known = KINDS.get(component.kind)
    demand(
        known is not None and isinstance(component, known.base),
        f"kind {component.kind!r} does not fit its base class",
    )


def options_are_typed_and_frozen_and_refuse_unknown_keys(subject: Subject[Component]) -> None:
    """A typo in a spec is told, and nothing changes after it has been read."""
    component, cls = subject.component, type(subject.component)
    demand(issubclass(cls.Options, Options), "Options must be a subclass of prunekit.Options")
    demand(
        isinstance(component.options, cls.Options), "options must be an instance of the class's own Options"
    )
    untyped = [k for k, f in cls.Options.model_fields.items() if f.annotation in (None, Any)]
    demand(not untyped, f"options without a type: {', '.join(untyped)}")
    try:
        cls.Options.model_validate({**component.options.model_dump(), "no_such_option": 1})
    except ValidationError:
        pass
    else:
        demand(False, "an unknown option is accepted; Options must forbid extra keys")
    for key in cls.Options.model_fields:
        try:
            setattr(component.options, key, getattr(component.options, key))
        except ValidationError:
            continue
        demand(False, f"option {key} can be set after the options were read; Options must be frozen")


def options_survive_the_results_file(subject: Subject[Component]) -> None:
    """What a file says of a run is enough to build it again."""
    options, cls = subject.component.options, type(subject.component)
    text = options.model_dump_json()
    demand(
        cls.Options.model_validate_json(text) == options, f"options change on the way through JSON: {text}"
    )
    demand(json.loads(text) is not None, "options are not JSON")


def options_leave_the_engines_keys_to_the_engine(subject: Subject[Component]) -> None:
    """The engine takes ``name`` itself, and what it says in the table of kinds."""
    component = subject.component
    fields = type(component).Options.model_fields
    names = set(fields) | {f.alias for f in fields.values() if f.alias}
    taken = {"name", *KINDS[component.kind].keys}
    if component.kind == "criterion":
        taken.add("lam")
    both = sorted(names & taken)
    demand(not both, f"Options has {', '.join(both)}, which the engine takes itself")


CHECKS = (
    has_a_name,
    options_are_typed_and_frozen_and_refuse_unknown_keys,
    options_survive_the_results_file,
    options_leave_the_engines_keys_to_the_engine,
)
