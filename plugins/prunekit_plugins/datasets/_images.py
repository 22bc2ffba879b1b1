"""What the image data sets share."""

from __future__ import annotations

from torch import Tensor

from prunekit import Split, Splits


def split_and_standardise(
    x: Tensor, y: Tensor, train: int, test: tuple[Tensor, Tensor], classes: int
) -> Splits:
    """Cut off the validation split and standardise by the training split's scalar mean and deviation."""
    # In double: a float32 sum of 40 million pixels is off in the fourth digit.
    mean = x[:train].double().mean()
    deviation = x[:train].double().std(correction=0)

    def scaled(t: Tensor) -> Tensor:
        return (t - mean.float()) / deviation.float()

    return Splits(
        train=Split(scaled(x[:train]), y[:train]),
        valid=Split(scaled(x[train:]), y[train:]) if train < len(x) else None,
        test=Split(scaled(test[0]), test[1]) if len(test[0]) else None,
        outputs=classes,
    )
