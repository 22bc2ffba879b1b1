"""The digits that come with scikit-learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from prunekit import DataError, Dataset, Options

if TYPE_CHECKING:
    from prunekit import Splits


class DigitsOptions(Options):
    """Options.

    Attributes:
        valid: Validation examples.
        test: Test examples.
    """

    valid: int = Field(default=300, ge=0)
    test: int = Field(default=300, ge=0)


class Digits(Dataset):
    """1797 images of handwritten digits, 8 × 8 pixels, as ``[N, 1, 8, 8]``; no file is needed.

    Split at random; standardised by the training split's mean and standard deviation.
    """

    name = "digits"
    Options = DigitsOptions

    def load(self, seed: int) -> Splits:
        """Read, shuffle, split, standardise."""
        import torch
        from sklearn.datasets import load_digits

        from prunekit_plugins.datasets._images import split_and_standardise

        digits = load_digits()
        x = torch.tensor(digits.images, dtype=torch.float32, device="cpu").unsqueeze(1)
        y = torch.tensor(digits.target, dtype=torch.long, device="cpu")
        held_out = self.options.valid + self.options.test
        if held_out >= len(x):
            raise DataError(
                f"dataset 'digits': has {len(x)} examples; valid and test take {held_out}, none is left"
            )
        options = self.options
        order = torch.randperm(
            len(x),
            device="cpu",
            generator=torch.Generator().manual_seed(seed),
        )
        x, y = x[order], y[order]
        test = x[len(x) - options.test :], y[len(y) - options.test :]
        x, y = x[: len(x) - options.test], y[: len(y) - options.test]
        return split_and_standardise(x, y, len(x) - options.valid, test, 10)
