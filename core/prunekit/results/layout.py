"""What a version of the format has to be able to do for a reader."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from prunekit.records import Plain

Arrays = dict[str, dict[str, np.ndarray]]


class Layout(Protocol):
    """How a version of the format stores things. Steps count from 1 and are there; so are phases and moments."""

    def summary(self) -> dict[str, Plain]:
        """Keys of the summary, as far as the file has them."""

    def masks(self, step: int) -> dict[str, np.ndarray]:
        """Masks after a step; 0 is before the first."""

    def phases(self) -> list[str]:
        """Phases whose weights are there."""

    def weights(self, phase: str) -> dict[str, np.ndarray]:
        """Parameters and buffers."""

    def examples(self, step: int) -> np.ndarray:
        """Indices into the training split."""

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Prunable tensors and their shapes."""

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Parameters and buffers of every phase, and their shapes; none before the first phase."""

    def pruned(self, steps: int) -> np.ndarray:
        """Pruned weights after each step, of each tensor: ``[steps, L]``, from the masks.

        Raises:
            ResultsError: If a weight comes back, or goes at a step that is not there.
        """

    def samples(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Where each step's sample begins, how long it is, and how many indices there are."""

    def history(self, phase: str) -> dict[str, np.ndarray]:
        """Columns over the training epochs; none if there were none."""

    def moments(self, label: str) -> dict[str, int]:
        """How often a probe measured, by moment; nothing if there is no such probe."""

    def probe_kind(self, label: str) -> str:
        """The name of the probe under a label, which is there."""

    def ranked(self) -> list[int]:
        """Steps whose saliencies are kept."""

    def saliencies(self, step: int) -> dict[str, np.ndarray]:
        """Saliencies of such a step, float32; NaN where a weight had gone before."""

    def check_rankings(self, count: int, last: int) -> None:
        """Hold saliencies against the number of weights and of steps."""

    def headline(self, label: str) -> list[str]:
        """Keys of a probe's summary that say most; dots go inwards, ``*`` is every key."""

    def probe(self, label: str, moment: str) -> Arrays:
        """Arrays, by group."""

    def attributes(self, label: str, moment: str) -> dict[str, Plain]:
        """What a probe has noted beside the arrays of a moment."""
