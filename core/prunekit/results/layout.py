"""What a version of the format has to be able to do for a reader."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from prunekit.results.version1 import Version1
from prunekit.results.version2 import Version2

Arrays = dict[str, dict[str, np.ndarray]]


class Layout(Protocol):
    """How a version of the format stores things. Steps count from 1 and are there; so are phases and moments."""

    def summary(self) -> dict[str, Any]:
        """Keys of the summary, as far as the file has them."""

    def masks(self, step: int) -> dict[str, np.ndarray]:
        """Masks after a step; 0 is before the first."""

    def phases(self) -> list[str]:
        """Phases whose weights are there."""

    def weights(self, phase: str) -> dict[str, np.ndarray]:
        """Parameters and buffers."""

    def examples(self, step: int) -> np.ndarray:
        """Indices into the training split."""

    def history(self, phase: str) -> dict[str, np.ndarray]:
        """Columns over the training epochs; none if there were none."""

    def moments(self, label: str) -> dict[str, int]:
        """How often a probe measured, by moment; nothing if there is no such probe."""

    def probe_kind(self, label: str) -> str:
        """The name of the probe under a label, which is there."""

    def probe(self, label: str, moment: str) -> Arrays:
        """Arrays, by group."""


LAYOUTS: dict[int, type[Version1] | type[Version2]] = {1: Version1, 2: Version2}
