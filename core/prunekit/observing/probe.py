"""Probes of the loss landscape."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from prunekit.component import Component
from prunekit.records import ProbeRecord

if TYPE_CHECKING:
    from torch import Generator

    from prunekit.observing.landscape import Landscape


class Probe(Component, ABC):
    """Measures the loss landscape after the run; cannot change the run's results or random state."""

    kind = "probe"

    @abstractmethod
    def measure(self, landscape: Landscape, generator: Generator) -> ProbeRecord:
        """Measure, using only ``landscape`` and randomness from ``generator``."""
