"""Which parameters are prunable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from prunekit.errors import SpecError
from prunekit.masks.blocks import block_names
from prunekit.masks.memory import parameters_once, refuse_overlaps
from prunekit.masks.roles import NEVER, Role, roles_of
from prunekit.masks.settings import Prunable

_NOTABLE = (Role.REWRITTEN, Role.UNREAL, Role.MATRIX)


def prunable_parameters(model: nn.Module, prunable: Prunable | None = None) -> dict[str, Tensor]:
    """Find the prunable parameters, in ``named_parameters()`` order.

    One that is tied, or lies over another's memory, comes once, by its first name.

    Raises:
        SpecError: If a pattern matches no parameter, nothing is left to prune, or what a weight is cannot be said.
    """
    options = prunable or Prunable()
    roles = roles_of(model)
    _refuse_idle_patterns("prune.prunable", [*(options.include or ()), *options.exclude], list(roles))
    blocks = _blocks(model, options)
    chosen = {name: p for name, (p, role) in roles.items() if _wanted(name, role, options, blocks)}
    if not chosen:
        by_role: dict[Role, list[str]] = {}
        for name, (_, role) in roles.items():
            by_role.setdefault(role, []).append(name)
        raise SpecError(
            "prune.prunable: no prunable weights: the model has no weight that multiplies its inputs, is included and "
            f"not excluded; it has {described(by_role) or 'no parameters'}"
        )
    refuse_overlaps(((name, p) for name, (p, _) in roles.items()), chosen)
    return chosen


def left_out(model: nn.Module, prunable: Prunable | None = None) -> dict[Role, list[str]]:
    """What is not prunable because of what it is, by role: not what the options exclude or do not include."""
    options = prunable or Prunable()
    out: dict[Role, list[str]] = {}
    blocks = _blocks(model, options)
    for name, (_, role) in roles_of(model).items():
        asked = options.include is None or matches(name, options.include)
        asked = asked and (blocks is None or name.startswith(blocks))
        if asked and not matches(name, options.exclude) and not _wanted(name, role, options, blocks):
            out.setdefault(role, []).append(name)
    return dict(sorted(out.items()))


def notable(out: Mapping[Role, Sequence[str]]) -> dict[Role, Sequence[str]]:
    """Of what is left out, what a user may have taken for weights."""
    return {role: names for role, names in out.items() if role in _NOTABLE}


def described(by_role: Mapping[Role, Sequence[str]]) -> str:
    """Names by role, in words.

    Examples:
        >>> described({Role.BIAS: ["a.bias", "b.bias"]})
        'biases: a.bias, b.bias'
    """
    return "; ".join(f"{role}: {shortened(names)}" for role, names in by_role.items())


def shortened(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are.

    Examples:
        >>> shortened([f"layer{i}" for i in range(9)])
        'layer0, layer1, layer2, layer3, layer4, layer5 and 3 more'
    """
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


def named_parameters(model: nn.Module, patterns: Sequence[str] = ("*",)) -> dict[str, Tensor]:
    """Every parameter of real numbers whose name matches a pattern, prunable or not.

    Raises:
        SpecError: If a pattern matches none.
    """
    once = parameters_once(model)
    _refuse_idle_patterns("parameters", patterns, list(once))
    return {name: p for name, p in once.items() if matches(name, patterns) and p.is_floating_point()}


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Does any shell-style pattern match the whole name, letter case included?"""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _blocks(model: nn.Module, options: Prunable) -> tuple[str, ...] | None:
    """What names have to begin with, if a preset says so."""
    if options.preset is None:
        return None
    return tuple(f"{name}." for name in block_names(model))


def _wanted(name: str, role: Role, options: Prunable, blocks: tuple[str, ...] | None) -> bool:
    """Whether a parameter is prunable under these options."""
    if role in NEVER or matches(name, options.exclude):
        return False
    if blocks is not None and not name.startswith(blocks):
        return False
    if blocks is not None and role is Role.MATRIX:
        return True
    if role is Role.NORM and not options.norms:
        return False
    if role is Role.BIAS and not options.biases:
        return False
    if options.include is None:
        return role in (Role.WEIGHT, Role.BIAS, Role.NORM)
    return matches(name, options.include)


def _refuse_idle_patterns(where: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    idle = [p for p in patterns if not any(fnmatchcase(n, p) for n in names)]
    if idle:
        raise SpecError(
            f"{where}: {', '.join(map(repr, idle))} matches no parameter; there are {', '.join(names)}"
        )
