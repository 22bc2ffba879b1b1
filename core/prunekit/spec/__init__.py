"""The run spec: YAML text with positions, typed validation, defaults, overrides, JSON Schema."""

from prunekit.spec.model import json_schema
from prunekit.spec.resolve import Part, Spec, load, resolve

__all__ = ["Part", "Spec", "json_schema", "load", "resolve"]
