"""What is laid over the text of a spec: flags, and training settings that fine-tuning takes over."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping

from prunekit.component import scalar
from prunekit.errors import PluginError, SpecError
from prunekit.plugins.host import PluginManager
from prunekit.records import Plain
from prunekit.spec.problems import shown
from prunekit.spec.text import Document, Key, dotted, number

_DEPTH = 100


def refuse_dropped(paths: Iterable[str]) -> None:
    """Refuse settings of which a later one drops an earlier one.

    Raises:
        SpecError: Naming both.
    """
    earlier: list[str] = []
    for path in paths:
        for other in earlier:
            if other == path or other.startswith(f"{path}."):
                again = (
                    "given twice"
                    if other == path
                    else f"drops --set {other}, which comes before it; give it first"
                )
                raise SpecError(f"--set {path}: {again}")
        earlier.append(path)


def plain(value: Plain, where: str) -> Plain:
    """A copy as JSON data.

    Raises:
        SpecError: If something else is among it.
    """
    try:
        return json.loads(json.dumps(value, default=scalar), parse_int=number)
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError(f"{where}: must be plain data (mappings, lists, text, numbers): {error}") from None


def override(data: Plain, dotted_path: str, value: Plain) -> Key:
    """Set one value, making mappings on the way; a plugin given by name alone becomes a mapping.

    Raises:
        SpecError: If the path leads nowhere.
    """
    path: list[str | int] = []
    here: Plain = data
    parts = dotted_path.split(".")
    if not all(parts):
        raise SpecError(f"--set {dotted_path}: a path is names joined by dots, such as prune.scheduler.steps")
    if len(parts) > _DEPTH:
        raise SpecError(
            f"--set {dotted_path[:40]}…: a path of {len(parts)} names; a spec is at most {_DEPTH} deep"
        )
    for depth, part in enumerate(parts):
        key: Plain = part
        if isinstance(here, list):
            if not re.fullmatch(r"[0-9]{1,9}", part) or int(part) >= len(here):
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
                f"--set {dotted_path}: {dotted(tuple(path))} is {shown(following)}, with nothing inside it to set"
            )
        here[key] = following
        here = following
    return tuple(path)


def inherit_training(data: Plain) -> list[str]:
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


def inherit_seeds(data: Plain, names: Iterable[str]) -> list[str]:
    """Fill the seeds that are left out with ``seed``; returns their names."""
    seeds = data.setdefault("seeds", {})
    if not isinstance(seeds, dict):
        return []
    missing = [name for name in names if seeds.get(name) is None]
    seeds.update(dict.fromkeys(missing, data.get("seed", 0)))
    return missing


def inherit_dtype(data: Plain, manager: PluginManager) -> bool:
    """Fill ``dtype`` from a model that says in which type it is loaded, where it is left out; whether it came from there."""
    model = data.get("model")
    if "dtype" in data or not isinstance(model, dict) or not isinstance(model.get("dtype"), str):
        return False
    try:
        sets = getattr(manager.get("model", str(model.get("name"))), "sets_dtype", False)
    except PluginError:  # said elsewhere
        return False
    if sets:
        data["dtype"] = model["dtype"]
    return bool(sets)


def origins_of(
    data: Plain,
    document: Document,
    flags: list[Key],
    inherited: Mapping[Key, Key],
    path: Key = (),
) -> Iterator[tuple[str, str]]:
    """Where every value came from: its dotted path, and ``default``, ``file`` or ``flag``.

    Args:
        data: All values.
        document: What the file gave.
        flags: What flags gave.
        inherited: Where values are copies: the place, two keys long, to that of the original.
        path: Where ``data`` stands.
    """
    if isinstance(data, dict | list) and data:
        items = data.items() if isinstance(data, dict) else enumerate(data)
        for key, value in items:
            yield from origins_of(value, document, flags, inherited, (*path, key))
        return
    source = (*inherited.get(path[:2], path[:2]), *path[2:])
    if any(flag == source[: len(flag)] for flag in flags):
        yield dotted(path), "flag"
    elif _given(document.data, source):
        yield dotted(path), "file"
    else:
        yield dotted(path), "default"


def _given(data: Plain, path: Key) -> bool:
    here: Plain = data
    for part in path:
        if isinstance(here, str):  # a plugin given by name alone
            return part == "name"
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True
