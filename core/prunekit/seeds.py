"""Randomness by purpose: every draw of a run has its own generator, made from the seed and a label.

No global random state carries over from one part of a run to the next, so a resumed run, or one with
another probe, draws the same numbers.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator


def derived(seed: int, *labels: str | int) -> int:
    """A 63-bit seed for one purpose; different labels give unrelated seeds."""
    text = "\x1f".join(map(str, (seed, *labels)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *labels: str | int) -> Generator:
    """A CPU generator for one purpose."""
    from torch import Generator

    return Generator().manual_seed(derived(seed, *labels))
