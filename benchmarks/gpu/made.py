"""Random data of MNIST's number and shape."""

from __future__ import annotations

import torch

import prunekit as pk


def splits(seed: int = 0) -> pk.Splits:
    """50,000 images to train with, 10,000 each to validate and to test."""
    return _splits(50_000, 10_000, seed)


def few(seed: int = 0) -> pk.Splits:
    """A hundredth of it."""
    return _splits(500, 100, seed)


def _splits(train: int, other: int, seed: int) -> pk.Splits:
    generator = torch.Generator().manual_seed(seed)

    def split(count: int) -> pk.Split:
        x = torch.randn(count, 784, generator=generator)
        return pk.Split(x, torch.randint(10, (count,), generator=generator))

    return pk.Splits(split(train), split(other), split(other))
