"""Claims of a results file, and what came of looking at each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal["holds", "differs", "unchecked"]


@dataclass(frozen=True)
class Claim:
    """Something that a file says.

    Attributes:
        name: What it is about, such as ``pruned test_loss``.
        verdict: Whether it ``holds``, ``differs`` from what was found, or is ``unchecked``.
        detail: What was found, by how much it differs, or why it cannot be checked.
    """

    name: str
    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True)
class Verification:
    """All claims of a file.

    Attributes:
        claims: In the order of a run.
    """

    claims: tuple[Claim, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing differs; what cannot be checked is no difference."""
        return not self.differing

    @property
    def differing(self) -> list[Claim]:
        """The claims that differ from what was found."""
        return [claim for claim in self.claims if claim.verdict == "differs"]

    def count(self, verdict: Verdict) -> int:
        """How many claims have this verdict."""
        return sum(claim.verdict == verdict for claim in self.claims)


@dataclass(frozen=True)
class Number:
    """A number found anew.

    Attributes:
        low: The smallest that the file may state, rounding in the run's type allowed for.
        high: The largest.
        value: In float64.
    """

    value: float
    low: float
    high: float

    @classmethod
    def about(cls, value: float, allowed: float) -> Number:
        """A number from which the file's may differ by so much."""
        return cls(value, value - allowed, value + allowed)

    def minus(self, other: Number) -> Number:
        """The difference of two."""
        return Number(self.value - other.value, self.low - other.high, self.high - other.low)


def holds(name: str, detail: str = "") -> Claim:
    """A claim that does."""
    return Claim(name, "holds", detail)


def differs(name: str, detail: str) -> Claim:
    """A claim that does not hold."""
    return Claim(name, "differs", detail)


def unchecked(name: str, why: str) -> Claim:
    """A claim that nobody can tell."""
    return Claim(name, "unchecked", " ".join(why.split()))


def judged(name: str, stated: float, found: Number) -> Claim:
    """A number that the file states, against the same found anew."""
    if found.low <= stated <= found.high:
        return holds(name, f"{stated:.6g}{_off(stated, found)}")
    return differs(name, f"the file says {stated:.9g}, found {found.value:.9g}{_off(stated, found)}")


def all_judged(
    name: str, stated: Mapping[int, float | None], found: Mapping[int, Number], why: str
) -> list[Claim]:
    """A column of the steps, against the same found anew: a claim for all that can be checked, one for the others.

    Args:
        name: Of the column.
        stated: Step to what the file says; ``None`` where it says nothing.
        found: Step to what was found.
        why: What stands in the way of the others.
    """
    numbers = {step: value for step, value in stated.items() if value is not None}
    known = {step: value for step, value in numbers.items() if step in found}
    claims = []
    wrong = [step for step, value in known.items() if not found[step].low <= value <= found[step].high]
    if wrong:
        worst = max(wrong, key=lambda step: abs(known[step] - found[step].value))
        first = judged(name, known[worst], found[worst])
        claims.append(differs(name, f"at {steps(wrong)}; at step {worst} {first.detail}"))
    elif known:
        worst = max(known, key=lambda step: abs(known[step] - found[step].value))
        off = _off(known[worst], found[worst])
        claims.append(
            holds(name, f"{steps(list(known))}{off} at step {worst}" if off else steps(list(known)))
        )
    others = [step for step in numbers if step not in found]
    if others:
        claims.append(unchecked(name, f"{steps(others)}: {why}"))
    return claims


def steps(numbers: Sequence[int]) -> str:
    """Steps in words.

    Examples:
        >>> steps([3]), steps([1, 2, 3]), steps([1, 4])
        ('step 3', 'steps 1 to 3', 'steps 1, 4')
    """
    if len(numbers) == 1:
        return f"step {numbers[0]}"
    if list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"steps {numbers[0]} to {numbers[-1]}"
    some = ", ".join(map(str, numbers[:8]))
    return f"steps {some}" + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")


def close(left: float, right: float, scale: Iterable[float] = ()) -> bool:
    """Whether two numbers differ by no more than sums in float64 do, of terms as large as those of ``scale``."""
    return abs(left - right) <= 2.0**-40 * math.fsum(map(abs, (left, right, *scale)))


def _off(stated: float, found: Number) -> str:
    """By how much, and how much is allowed."""
    by = abs(stated - found.value)
    return (
        f", off by {by:.2g}, {max(found.high - found.value, found.value - found.low):.2g} allowed"
        if by
        else ""
    )
