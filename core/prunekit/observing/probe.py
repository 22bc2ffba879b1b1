"""Probes of the loss landscape, and when they are asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from prunekit.component import Component
from prunekit.lending import Lent
from prunekit.records import ProbeRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Generator

    from prunekit.observing.moment import Moment
    from prunekit.results import Results
    from prunekit.statistics.joint import JointModel

MOMENTS = ("dense", "step", "pruned", "finetuned", "end")
"""What a probe may be asked at: after training, after each step, after the last, after fine-tuning, at the very end."""

Spoken = str | Mapping[str, int] | Sequence[str | Mapping[str, int]]
"""Moments as a class or a spec names them: names, and ``{"every": n}`` for every n-th step."""


@dataclass(frozen=True)
class Moments:
    """When a probe is asked.

    Attributes:
        names: Names out of :data:`MOMENTS`.
        every: Steps whose number is a multiple of this; 0 for none.
    """

    names: tuple[str, ...]
    every: int = 0

    @classmethod
    def parse(cls, spoken: Spoken) -> Self:
        """Read moments.

        Raises:
            ValueError: If there is none, or one that does not exist.
        """
        listed = [spoken] if isinstance(spoken, str | Mapping) else list(spoken)
        names: list[str] = []
        every: list[int] = []
        for one in listed:
            if isinstance(one, Mapping):
                count = one.get("every")
                if (
                    set(one) != {"every"}
                    or isinstance(count, bool)
                    or not isinstance(count, int)
                    or count < 1
                ):
                    raise ValueError(f"a mapping of moments is {{every: n}} with n >= 1; found {dict(one)!r}")
                every.append(count)
            elif one == "step":
                every.append(1)
            elif one in MOMENTS:
                names.append(one)
            else:
                raise ValueError(f"must be one of {', '.join(MOMENTS)} or {{every: n}}; found {one!r}")
        if not listed or len(every) > 1 or len(set(names)) < len(names):
            raise ValueError(f"must name at least one moment, and each once; found {spoken!r}")
        return cls(tuple(names), every[0] if every else 0)

    def at(self, name: str, step: int | None = None) -> bool:
        """Whether this is one of them."""
        if step is not None:
            return bool(self.every) and step % self.every == 0
        return name in self.names


def asked(probe: Probe, moment: Moment, generator: Generator) -> ProbeRecord:
    """What a probe finds at a moment.

    Raises:
        RunError: If it has changed what it was lent.
    """
    lent = Lent(moment.lent())
    record = probe.measure(moment, generator)
    lent.check(f"probe {probe.name!r}")
    return record


class Probe(Component, ABC):
    """Measures the loss landscape at some moments of a run; cannot change its results or random state."""

    kind = "probe"
    moments: ClassVar[Spoken] = ("end",)
    """When it measures, unless a spec says otherwise: any of ``dense``, ``step``, ``pruned``, ``finetuned``, ``end``, and
    ``{"every": n}`` for every n-th step."""

    headline: ClassVar[Sequence[str]] = ()
    """The most telling keys of its summary, which ``inspect`` shows in a line: dots go inwards, ``*`` is
    every key."""

    @property
    def criteria(self) -> Sequence[object]:
        """Criteria that it asks the moment for, so that a run rejects unknown ones before it begins."""
        return ()

    def check(self, criterion: str, joint_model: Callable[[], JointModel | None]) -> None:
        """Reject, before anything is computed, a criterion whose steps it cannot measure; called where it sees steps.

        Args:
            criterion: The name of the one that proposes the steps.
            joint_model: As :attr:`StepMoment.joint_model` will be, except for what a scheduler sets.

        Raises:
            SpecError: The message says which would be accepted.
        """

    @abstractmethod
    def measure(self, moment: Moment, generator: Generator) -> ProbeRecord:
        """Measure, using only ``moment`` and randomness from ``generator``."""

    @classmethod
    def draw(cls, results: Results, label: str, figure: Figure) -> None:
        """Draw what it found, for ``inspect --plot FILE --figure LABEL``; by default a probe has no picture.

        Args:
            results: Those of a run in which it has measured.
            label: Its key in the results.
            figure: An empty ``matplotlib.figure.Figure``, to be filled with axes.
        """
        raise NotImplementedError

    @classmethod
    def has_picture(cls) -> bool:
        """Whether it can be drawn."""
        return any("draw" in vars(base) for base in cls.__mro__[: cls.__mro__.index(Probe)])
