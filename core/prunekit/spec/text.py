"""Read YAML 1.2 into plain data and remember where every value stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from prunekit.errors import SpecError
from prunekit.records import Plain

Key = tuple[str | int, ...]
"""Where a value stands: ``("probes", 0, "points")``."""

_STANDARD = "tag:yaml.org,2002:"
_TAGS = {"null", "bool", "int", "float", "str", "map", "seq", "timestamp", "merge", "value"}
_LARGEST = 2**64
_DIGITS = 24

_MAX_NODES = 100_000  # a spec has dozens of values; nested aliases can make billions


@dataclass
class Document:
    """Plain data with positions.

    Attributes:
        data: Mappings, lists, strings, numbers, booleans and None.
        source: Name shown in messages.
        marks: Path of a value to (line, column) of its key or, in a list, of the value; from 1.
        text: The text itself.
    """

    data: Plain
    source: str
    marks: dict[Key, tuple[int, int]] = field(default_factory=dict)
    text: str = ""

    def where(self, path: Key) -> str:
        """``source:line:column`` of a path, or of the nearest parent that is there."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.marks:
                line, column = self.marks[path[:end]]
                return f"{self.source}:{line}:{column}"
        return self.source


def parse(text: str, source: str) -> Document:
    """Parse YAML 1.2: ``no`` is a string, ``1e-3`` a number, a key given twice an error.

    Raises:
        SpecError: With line and column.
    """
    document = Document(None, source, text=text)
    data = _built(text, document)
    document.data = {} if data is None else data
    if not isinstance(document.data, dict):
        raise SpecError(
            f"{source}:1:1: a spec is a mapping (version, model, dataset, prune, …), "
            f"found {type(document.data).__name__}"
        )
    return document


def parse_value(text: str, source: str = "value") -> Plain:
    """Read one value, as on the right of ``--set PATH=VALUE``.

    Raises:
        SpecError: If it is not valid YAML.
    """
    return _built(text, Document(None, source))


def _built(text: str, document: Document) -> Plain:
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 2)
    source = document.source
    try:
        node = yaml.compose(text)
        return _Builder(document).build(node, ()) if node is not None else None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        what = str(error.problem or error.context)
        if "alias" in what:
            what += (
                "; YAML takes what begins with * as one. A pattern such as *.bias goes in quotes: '*.bias'"
            )
        raise SpecError(f"{where}: not valid YAML: {what}") from None
    except YAMLError as error:
        raise SpecError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise SpecError(f"{source}: nested too deeply, or an alias that contains itself") from None


class _Builder:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.nodes = 0

    def build(self, node: Node, path: Key) -> Plain:
        self.nodes += 1
        if self.nodes > _MAX_NODES:
            raise SpecError(f"{self.document.source}: holds more than {_MAX_NODES} values")
        self.document.marks.setdefault(path, _mark(node))
        tag = str(node.tag)
        if (tag.startswith("!") and tag != "!") or (
            tag.startswith(_STANDARD) and tag[len(_STANDARD) :] not in _TAGS
        ):
            self._refuse(
                node,
                path,
                f"the tag {tag.replace(_STANDARD, '!!')} is not understood; write the value itself, without a tag "
                "(nothing is included or taken from the environment)",
            )
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        try:
            node.value.encode()
        except UnicodeEncodeError:
            raise SpecError(
                f"{self.document.where(path)}: {dotted(path)}: half a surrogate pair is not a character"
            ) from None
        return _scalar(node)

    def _mapping(self, node: MappingNode, path: Key) -> dict[str, Plain]:
        result: dict[str, Plain] = {}
        for key, (key_node, value_node) in self._entries(node, path).items():
            self.document.marks[(*path, key)] = _mark(key_node)
            result[key] = self.build(value_node, (*path, key))
        return result

    def _entries(self, node: MappingNode, path: Key) -> dict[str, tuple[ScalarNode, Node]]:
        """Key to the nodes of key and value; keys of the mapping itself win over those that are merged into it."""
        self.nodes += 1
        own: dict[str, tuple[ScalarNode, Node]] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self._refuse(key_node, path, "a key must be a word")
            key = str(key_node.value)
            if key in own:
                self._refuse(key_node, (*path, key), "this key is given twice")
            own[key] = key_node, value_node
        if "<<" not in own or own["<<"][0].style is not None:  # in quotes it is a key like any other
            return own
        key_node, value_node = own.pop("<<")
        merged: dict[str, tuple[ScalarNode, Node]] = {}
        # Of several, the first wins.
        for source in reversed(value_node.value if isinstance(value_node, SequenceNode) else [value_node]):
            if not isinstance(source, MappingNode):
                self._refuse(key_node, path, "the merge key << takes a mapping, or a list of mappings")
            merged.update(self._entries(source, path))
        return merged | own

    def _refuse(self, node: Node, path: Key, why: str) -> NoReturn:
        line, column = _mark(node)
        raise SpecError(f"{self.document.source}:{line}:{column}: {dotted(path) or 'spec'}: {why}")


def _mark(node: Node) -> tuple[int, int]:
    """Line and column, from 1."""
    return node.start_mark.line + 1, node.start_mark.column + 1


def _scalar(node: ScalarNode) -> Plain:
    tag, text = str(node.tag).rsplit(":", 1)[-1], node.value
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() == "true"
    try:
        if tag == "int":
            digits = text.replace("_", "")
            # YAML 1.2: a leading zero is no octal mark.
            return number(digits) if digits.lstrip("+-").isdigit() else number(str(int(digits, 0)))
        if tag == "float":
            return float(
                text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan").replace(".NaN", "nan")
            )
    except ValueError:
        pass
    return text


def number(digits: str) -> int | float:
    """A whole number; one that no whole number of a machine holds, as the nearest that a computer has."""
    whole = int(digits) if len(digits) <= _DIGITS else None
    return whole if whole is not None and abs(whole) < _LARGEST else float(digits)


def dotted(path: Key) -> str:
    """``("prune", "scheduler", "steps")`` as ``prune.scheduler.steps``."""
    return ".".join(str(part) for part in path)
