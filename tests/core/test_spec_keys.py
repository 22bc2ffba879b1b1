"""Every key of every built-in's schema: values that it describes are taken however they are written, others refused.

The values are made from the schema that editors get: so what it promises is what a spec may hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import SpecError
from prunekit.plugins.host import default_manager
from prunekit.plugins.kinds import KINDS, METRIC_LABEL
from prunekit.spec import json_schema, load
from prunekit.spec.text import parse_value

Place = tuple[str | int, ...]
WORDS = {r"^[\w.]+:[\w.]+$": "module:function", f"^{METRIC_LABEL}$": "a_word"}
"""Texts of a form."""

SCHEMA = json_schema()
DEFINITIONS = SCHEMA["$defs"]
BASE: dict[str, Any] = {
    "version": 1,
    "name": "base",
    "model": {"name": "mlp"},
    "dataset": {"name": "digits"},
    "train": {"epochs": 2, "optimizer": {"name": "sgd"}, "lr_scheduler": {"name": "constant"}},
    "prune": {"criterion": {"name": "lm"}, "scheduler": {"name": "one_shot", "sparsity": 0.5}},
    "finetune": {"epochs": 1},
}
NEEDED = {
    "sparsity": 0.5,
    "levels": [0.5],
    "factory": "module:function",
    "path": "data.npz",
    "train": "text.txt",
    "model": "resnet18",
    "epochs": 1,
    "every": 1,
    "milestones": [1],
}
TOGETHER: dict[str, dict[str, Any]] = {
    "n": {"m": 4},
    "m": {"n": 1},
    "draws": {"curvature": "ggn_mc"},
    "terms": {"curvature": "empirical_fisher"},
    "nesterov": {"momentum": 0.9},
    "floor": {"ceiling": 1.0},
    "ceiling": {"floor": 0.0},
}
"""What a key cannot stand without."""


SPECIAL: dict[str, list[Any]] = {
    "device": ["auto", "cpu", "cuda", "cuda:3"],
    "moments": [None, "step", {"every": 2}, ["dense", {"every": 3}]],
    "memory": [1 << 20, "512MiB", "2 GB", None],
    "until": [None, {"metric": "valid_error", "rise": 0.01, "relative": True, "bisect": 2}],
    "n": [1],
    "m": [4],
    "criterion": ["qm", {"name": "obs", "damping": 0.1}],
    "criteria": [["qm"], ["magnitude", {"name": "obs", "damping": 0.1}]],
}
"""What the schema describes in words, or together with others."""


def places() -> Iterator[tuple[str, Place, dict[str, Any], dict[str, Any]]]:
    """Of every mapping in a spec: an id, where it stands, the least that it holds, and its schema."""
    for kind, known in KINDS.items():
        for name in default_manager().names(kind) if known.slot else ():
            schema = DEFINITIONS[f"{kind}.{name}"]
            assert known.slot is not None
            place = (*known.slot, 0) if known.many else known.slot
            if kind == "recorder":
                continue  # a run has one of each, and hdf5 has no options
            yield f"{kind}.{name}", place, least(schema, name), schema
    for phase in ("train", "finetune"):
        yield phase, (phase,), {"epochs": 1}, DEFINITIONS["Train"]
    for title, name in [("SGD", "sgd"), ("Adam", "adam"), ("AdamW", "adamw")]:
        yield f"optimizer.{name}", ("train", "optimizer"), {"name": name}, DEFINITIONS[title]
    for title, name in [
        ("Constant", "constant"),
        ("Step", "step"),
        ("MultiStep", "multistep"),
        ("Cosine", "cosine"),
    ]:
        yield (
            f"lr_scheduler.{name}",
            ("train", "lr_scheduler"),
            least(DEFINITIONS[title], name),
            DEFINITIONS[title],
        )
    for title, place in [
        ("Prunable", ("prune", "prunable")),
        ("Evaluate", ("evaluate",)),
        ("Seeds", ("seeds",)),
    ]:
        yield title.lower(), place, {}, DEFINITIONS[title]
    yield "prune", ("prune",), BASE["prune"], DEFINITIONS["Prune"]
    yield "spec", (), BASE, SCHEMA


def least(schema: dict[str, Any], name: str) -> dict[str, Any]:
    return {"name": name} | {key: NEEDED[key] for key in schema.get("required", []) if key != "name"}


def keys(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The keys that hold no mapping of the spec themselves; those are places of their own."""
    own = {k: v for k, v in schema.get("properties", {}).items() if k not in ("name", "version")}
    return {k: v for k, v in own.items() if "$ref" not in json.dumps(v) or k == "moments"}


def branches(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The alternatives of a schema."""
    if isinstance(schema.get("type"), list):
        return [{**schema, "type": kind} for kind in schema["type"]]
    return schema.get("anyOf", [schema])


def valid(schema: dict[str, Any]) -> list[Any]:
    if "const" in schema:
        return [schema["const"]]
    if "enum" in schema:
        return list(schema["enum"])
    if branches(schema) != [schema]:
        return [value for one in branches(schema) for value in valid(one)]
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return numbers(schema, whole=kind == "integer")
    if kind == "array":
        items = (
            schema["prefixItems"]
            if "prefixItems" in schema
            else [schema["items"]] * max(1, schema.get("minItems", 1))
        )
        return [[valid(item)[-1] for item in items]]
    values: dict[Any, list[Any]] = {
        "boolean": [True, False],
        "null": [None],
        "object": [{}],
        "string": ["a_word"]
        if "[a-z]" in schema.get("pattern", "")
        else ["module:function"]
        if "pattern" in schema
        else ["a word"],
    }
    return values[kind]


def numbers(schema: dict[str, Any], *, whole: bool) -> list[Any]:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    inside = [v for v in (low, high) if v is not None]
    step = 1 if whole else 0.25
    inside += [above + step] if above is not None else []
    inside += [below - step] if below is not None else []
    return inside or [0]


def invalid(schema: dict[str, Any]) -> list[Any]:
    kinds = {one.get("type") for one in branches(schema)} | {
        type_of(value) for value in schema.get("enum", [])
    }
    if "const" in schema:
        kinds.add(type_of(schema["const"]))
    wrong: list[Any] = [] if "string" in kinds else ["word"]
    wrong += [] if "array" in kinds else [[1, 2]]
    wrong += [] if "object" in kinds else [{"inside": 1}]
    wrong += [] if "boolean" in kinds else [True]
    wrong += [] if kinds & {"integer", "number"} else [7]
    for one in branches(schema):
        if one.get("type") in ("integer", "number"):
            step = 1 if one["type"] == "integer" else 0.5
            wrong += [one["minimum"] - step] if "minimum" in one else []
            wrong += [one["maximum"] + step] if "maximum" in one else []
            wrong += [one[key] for key in ("exclusiveMinimum", "exclusiveMaximum") if key in one]
            wrong += [10**400, math.inf]
            wrong += [1.5, 10**23] if one["type"] == "integer" and "number" not in kinds else []
        if one.get("type") == "array":
            words = any(item.get("type") == "string" for item in branches(one.get("items", {})))
            wrong += [[1]] if words else [["word"]]
    return wrong


def type_of(value: object) -> str:
    return {bool: "boolean", int: "integer", float: "number", str: "string"}[type(value)]


def with_key(place: Place, mapping: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    whole = deepcopy(BASE)
    whole["probes"] = [{"name": "line"}]
    whole["evaluate"] = {"metrics": [{"name": "accuracy"}]}
    here: Any = whole
    for part in place[:-1]:
        here = here[part]
    filled = {**deepcopy(mapping), **together(mapping, key), key: value}
    if not place:
        return {**whole, **filled}
    here[place[-1]] = {k: v for k, v in filled.items() if k == key or k in allowed(mapping, key)}
    return whole


def together(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    own = mapping.get("name") == "empirical_fisher"  # which has no other curvature
    return {} if own else TOGETHER.get(key, {})


def allowed(mapping: dict[str, Any], key: str) -> set[str]:
    return set(mapping) | set(together(mapping, key))


def cases() -> list[Any]:
    return [pytest.param(place, mapping, schema, id=name) for name, place, mapping, schema in places()]


def at(data: Any, place: Place) -> Any:
    for part in place:
        data = data[part]
    return data


def dotted(place: Place) -> str:
    return ".".join(map(str, place))


@pytest.mark.parametrize(("place", "mapping", "schema"), cases())
def test_what_the_schema_describes_is_taken_from_a_mapping_a_file_and_a_flag(
    place, mapping, schema, tmp_path
) -> None:
    for key, described in keys(schema).items():
        for value in SPECIAL.get(key) or valid(described):
            if place == ("seeds",) and value is None:
                continue  # which stands for the run's seed
            whole = with_key(place, mapping, key, value)
            expected = load(whole).data
            if key != "memory" or not isinstance(value, str):
                assert same(at(expected, (*place, key)), value), (key, value)
            for suffix in ("yaml", "json"):  # JSON is YAML
                path = tmp_path / f"base.{suffix}"
                path.write_text(written(whole) if suffix == "yaml" else json.dumps(whole))
                assert load(path).data == expected, (key, value)
            without = deepcopy(whole)
            del at(without, place)[key]
            if key not in schema.get("required", []):
                setting = parse_value(json.dumps(value))
                assert load(without, {dotted((*place, key)): setting}).data == expected, (key, value)


@pytest.mark.parametrize(("place", "mapping", "schema"), cases())
def test_what_it_does_not_describe_is_refused_with_its_place(place, mapping, schema, tmp_path: Path) -> None:
    for key, described in keys(schema).items():
        for value in invalid(described):
            if key == "memory" and isinstance(value, str):
                continue  # which may be text with a unit
            whole = with_key(place, mapping, key, value)
            path = tmp_path / "base.yaml"
            path.write_text(written(whole))
            where = dotted((*place, key))
            with pytest.raises(SpecError) as refused:
                load(path)
            assert any(where in problem and "base.yaml:" in problem for problem in refused.value.problems), (
                key,
                value,
            )


def same(some: Any, other: Any) -> bool:
    return json.dumps(some) == json.dumps(other) or some == other


def written(value: Any) -> str:
    """As YAML, a key a line, so that a place in it says something; lists and what is in them in flow style."""

    def lines(mapping: dict[str, Any], indent: str) -> Iterator[str]:
        for key, inner in mapping.items():
            if isinstance(inner, dict) and inner:
                yield f"{indent}{key}:"
                yield from lines(inner, indent + "  ")
            else:
                yield f"{indent}{key}: {json.dumps(inner).replace('Infinity', '.inf')}"

    return "\n".join(lines(value, "")) + "\n"
