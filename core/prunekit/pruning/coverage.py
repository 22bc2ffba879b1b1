"""What of a model is pruned and what is not, by class of module, and which rule serves it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from prunekit.masks.memory import memory, places
from prunekit.masks.prunable import prunable_parameters, shortened
from prunekit.masks.roles import Role, roles_of
from prunekit.masks.settings import Prunable
from prunekit.network.axes import observe_axes
from prunekit.network.call import Batch
from prunekit.statistics.served import FALLBACK, FAST, UNUSED, served

_MATRICES = (Role.REWRITTEN, Role.UNREAL, Role.ADAPTER, Role.ROUTER, Role.WEIGHT, Role.MATRIX)
"""What multiplies inputs, or might."""
NOTABLE = 0.1
"""The share of the matrices' weights from which it is worth a warning that they are left out."""


@dataclass(frozen=True)
class Covered:
    """The parameters of all modules of one class.

    Attributes:
        module: The class's name.
        pruned: Weights that are prunable.
        kept: Weights that are not.
        why: What these are, to their names.
        tied: Weights that have been counted under another name already.
        fast: Of the prunable ones, those whose statistics come from one capture; ``None`` without batches.
        fallback: Those that are taken example by example.
        unused: Those that no example uses.
    """

    module: str
    pruned: int
    kept: int
    why: Mapping[str, Sequence[str]]
    tied: int
    fast: int | None = None
    fallback: int | None = None
    unused: int | None = None


@dataclass(frozen=True)
class Coverage:
    """What is pruned.

    Attributes:
        rows: By class of module, in the order in which they come up.
        names: The prunable parameters.
        rules: Parameter to ``fast``, ``fallback`` or ``unused``; empty without batches.
        left_out: The share of the weights of matrices that is not pruned; embeddings and norms do not count.
    """

    rows: tuple[Covered, ...]
    names: tuple[str, ...]
    rules: Mapping[str, str]
    left_out: float

    @property
    def warning(self) -> str:
        """What to tell a user; empty if nearly all matrices are pruned."""
        if self.left_out <= NOTABLE:
            return ""
        some = "; ".join(f"{why}: {shortened(names)}" for why, names in self.reasons().items())
        return f"{100 * self.left_out:.0f} % of the matrix weights are not pruned ({some})"

    def __str__(self) -> str:
        columns, cells = self.table()
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        lines = []
        for first, *others in (columns, *cells):
            numbers = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
            lines.append("  ".join([first.ljust(widths[0]), *numbers]))
        return "\n".join(lines)

    def described(self) -> str:
        """The table, and below it what is not pruned, by name."""
        reasons = self.reasons().items()
        lines = [str(self), *(f"not pruned, {why}: {shortened(names)}" for why, names in reasons)]
        if self.warning:
            lines.append(f"warning: that is {100 * self.left_out:.0f} % of the matrix weights")
        return "\n".join(lines)

    def reasons(self) -> dict[str, list[str]]:
        """Why parameters are not pruned, to their names."""
        found: dict[str, list[str]] = {}
        for row in self.rows:
            for why, names in row.why.items():
                found.setdefault(why, []).extend(names)
        return found

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Titles of columns, and a row of texts for each class."""
        columns = ["module", "pruned", "not pruned", "tied"]
        if self.rules:
            columns += ["fast", "fallback", "unused"]
        rows = []
        for row in self.rows:
            numbers = [row.pruned, row.kept, row.tied]
            numbers += [row.fast or 0, row.fallback or 0, row.unused or 0] if self.rules else []
            rows.append([row.module, *(f"{n:,}" if n else "–" for n in numbers)])
        return columns, rows


def coverage(
    model: nn.Module, batches: Iterable[Batch] | None = None, prunable: Prunable | None = None
) -> Coverage:
    """Look at a model.

    Args:
        model: Left as it was found.
        batches: A few examples of each are looked at.
        prunable: What changes the set of prunable weights.
    """
    chosen = prunable_parameters(model, prunable)
    rules: dict[str, str] = {}
    if batches is not None:
        held = list(batches)
        observe_axes(model, chosen, lambda: held)
        rules = served(model, held, chosen)
    roles, rows, seen = roles_of(model), dict[str, _Row](), dict[object, str]()
    whole = out = 0
    for (module, _, name), parameter in places(model):
        row = rows.setdefault(type(module).__name__, _Row())
        first, size = seen.setdefault(memory(parameter), name), parameter.numel()
        if first != name:
            row.tied += size
            continue
        role = roles[name][1]
        matrix = role in _MATRICES
        whole += size * matrix
        if name in chosen:
            row.pruned += size
            rule = rules.get(name)
            row.by_rule[rule] = row.by_rule.get(rule, 0) + size
        else:
            row.kept += size
            row.why.setdefault(
                str(role) if role is not Role.WEIGHT else "weights that are excluded", []
            ).append(name)
            out += size * matrix
    looked = batches is not None
    covered = tuple(row.covered(module, looked) for module, row in rows.items())
    return Coverage(covered, tuple(chosen), rules, out / whole if whole else 0.0)


class _Row:
    def __init__(self) -> None:
        self.pruned = self.kept = self.tied = 0
        self.why: dict[str, list[str]] = {}
        self.by_rule: dict[str | None, int] = {}

    def covered(self, module: str, looked: bool) -> Covered:
        """The row, with rules if there was something to look at."""
        rules = [self.by_rule.get(rule, 0) if looked else None for rule in (FAST, FALLBACK, UNUSED)]
        return Covered(module, self.pruned, self.kept, self.why, self.tied, *rules)
