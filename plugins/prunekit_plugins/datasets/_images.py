"""What the image data sets share."""

from __future__ import annotations

from torch import Tensor

from prunekit import Split, Splits


def split_and_standardise(
    x: Tensor, y: Tensor, train: int, test: tuple[Tensor, Tensor], classes: int
) -> Splits:
    """Cut off the validation split and standardise by the training split's scalar mean and deviation."""
    mean, deviation = _moments(x[:train])

    def scaled(t: Tensor) -> Tensor:
        return t.float().sub_(mean).div_(deviation)

    return Splits(
        train=Split(scaled(x[:train]), y[:train]),
        valid=Split(scaled(x[train:]), y[train:]) if train < len(x) else None,
        test=Split(scaled(test[0]), test[1]) if len(test[0]) else None,
        outputs=classes,
    )


def _moments(x: Tensor) -> tuple[float, float]:
    """Mean and standard deviation; images in float32, their sums in double.

    Summed in float32 throughout, 40 million pixels cost four digits.
    """
    total = square = 0.0
    for start in range(0, len(x), 2000):
        values = x[start : start + 2000].float().flatten(1)
        total += float(values.sum(1).double().sum())
        square += float(values.square().sum(1).double().sum())
    mean = total / x.numel()
    variance = max(square / x.numel() - mean**2, 0.0)
    return mean, variance**0.5 or 1.0  # images of one colour have nothing to scale
