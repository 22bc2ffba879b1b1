"""Two classes of Gaussian mixtures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from prunekit import Dataset, Options

if TYPE_CHECKING:
    from torch import Generator

    from prunekit import Split, Splits

# Class, component: means and variances of the five inputs.
_MEANS = (((1, 1, 0, 1, 0.5), (0, 0, 1, 0, 0.5)), ((0, 1, 0, 0, 0.5), (1, 0, 1, 1, 0.5)))
_VARIANCES = (
    ((0.99, 1.0, 0.88, 0.70, 0.95), (1.28, 0.60, 0.52, 0.93, 0.93)),
    ((0.84, 0.68, 1.28, 1.02, 0.89), (0.52, 1.25, 1.09, 0.64, 1.13)),
)


class GaussiansOptions(Options):
    """Options.

    Attributes:
        train: Training examples.
        valid: Validation examples.
        test: Test examples.
        data_seed: Seed of the examples; default: the split's seed.
    """

    train: int = Field(default=1000, ge=1, le=1_000_000_000)
    valid: int = Field(default=0, ge=0, le=1_000_000_000)
    test: int = Field(default=1000, ge=0, le=1_000_000_000)
    data_seed: int | None = Field(default=None, ge=0, lt=2**63)


class Gaussians(Dataset):
    """Five inputs, two classes, each an equal mixture of two normal distributions; one output.

    Targets are ``[N, 1]``, 1 for the second class, so the default loss is ``bce_with_logits``.
    Reference: Hassibi, Stork, Wolff & Watanabe (1993), the synthetic problem.
    """

    name = "gaussians"
    Options = GaussiansOptions

    def load(self, seed: int) -> Splits:
        """Draw the examples of every split, with ``data_seed`` if it is given, else with the split's seed."""
        import torch

        from prunekit import Splits

        options = self.options
        generator = torch.Generator().manual_seed(seed if options.data_seed is None else options.data_seed)
        train, valid, test = (_draw(n, generator) for n in (options.train, options.valid, options.test))
        return Splits(train, valid if len(valid) else None, test if len(test) else None, outputs=1)


def _draw(count: int, generator: Generator) -> Split:
    import torch

    from prunekit import Split

    label = torch.randint(2, (count,), generator=generator, device="cpu")
    component = torch.randint(2, (count,), generator=generator, device="cpu")
    noise = torch.randn(count, 5, generator=generator, device="cpu")
    means, variances = (
        torch.tensor(_MEANS, device="cpu")[label, component],
        torch.tensor(_VARIANCES, device="cpu")[label, component],
    )
    return Split(means + noise * variances.sqrt(), label.float().unsqueeze(1))
