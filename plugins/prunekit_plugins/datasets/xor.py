"""Exclusive or: the four patterns of two bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit import Dataset

if TYPE_CHECKING:
    from prunekit import Splits


class XOR(Dataset):
    """The four patterns of two bits, to train and to test; one output, 1 where the bits differ.

    Targets are ``[4, 1]``, so the default loss is ``bce_with_logits``. The problem on which Hassibi & Stork
    (1992) show that magnitude and OBD remove the wrong weight.
    """

    name = "xor"

    def load(self, seed: int) -> Splits:
        """Write down the four patterns, the same to train and to test."""
        import torch

        from prunekit import Split, Splits

        x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], device="cpu")
        split = Split(x, (x[:, :1] != x[:, 1:]).float())
        return Splits(split, test=split, outputs=1)
