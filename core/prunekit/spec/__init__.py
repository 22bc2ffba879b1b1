"""The run spec: YAML text with positions, typed validation, defaults, overrides, JSON Schema."""

from prunekit.spec.resolve import Part, Spec, load, resolve
from prunekit.spec.schema import json_schema

__all__ = ["Part", "Spec", "json_schema", "load", "resolve"]
