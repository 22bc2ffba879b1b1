"""A stochastic estimate of the Hessian's diagonal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from prunekit import Estimator, Options, Sampled

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.statistics import ForwardPass, Problem

_VECTORS = 7  # of a group: gradient, signs, product, mean, squares, and two to work with


class HutchinsonOptions(Options):
    """Options.

    Attributes:
        draws: Random sign vectors per batch slice.
    """

    draws: int = Field(default=10, ge=1, le=1_000_000)


class HutchinsonDiagonal(Estimator):
    """The mean of v ⊙ Hv over random sign vectors v: unbiased for diag(H), with its standard error.

    The error of one draw at weight i is Σ_{j≠i} H_ij v_i v_j, of variance Σ_{j≠i} H_ij², whatever H_ii is;
    j runs over the parameters that are drawn together: all of them, where their vectors fit half the memory
    budget, else groups of them. Each slice of the data has draws of its own, so errors of slices
    average out too; how the data are cut changes the numbers drawn, not what they estimate.
    ``.standard_error`` of the result holds one tensor per parameter, from the spread over the draws (NaN
    with a single draw); nothing else of a step depends on it.
    Reference: Bekas, Kokiopoulou & Saad (2007); Hutchinson (1990) for the trace.

    Cost per batch slice and group: one gradient with its graph, and one backward pass through both per draw.
    """

    name = "hutchinson_diagonal"
    Options = HutchinsonOptions
    second_order = True

    def start(self, problem: Problem) -> None:
        """Begin with zeros, and form the groups of parameters that are drawn together."""
        self._sums, self._variances = problem.zeros(), problem.zeros()
        self._generator = problem.generator
        self._groups: list[list[str]] = []
        room = 0
        for name, total in self._sums.items():
            needed = _VECTORS * total.nbytes
            if needed > room:
                self._groups.append([])
                room = problem.memory // 2
            room -= needed
            self._groups[-1].append(name)

    def add(self, batch: ForwardPass) -> None:
        """Add the mean of this slice's draws, and the variance of that mean."""
        for names in self._groups:
            self._add(batch, names)

    def _add(self, batch: ForwardPass, names: list[str]) -> None:
        import torch

        draws, products = self.options.draws, batch.hessian_products(names)
        means = {name: torch.zeros_like(self._sums[name]) for name in names}
        squares = {name: torch.zeros_like(self._sums[name]) for name in names}
        for index in range(draws):
            signs = {name: self._signs(batch.problem.parameters[name]) for name in names}
            product = products(signs)
            for name in names:
                # Welford's recursion: sums of squares would cancel.
                value = product.pop(name).to(means[name].dtype) * signs[name]
                deviation = value - means[name]
                means[name] += deviation / (index + 1)
                squares[name] += deviation * (value - means[name])
        for name, mean in means.items():
            self._sums[name] += mean
            self._variances[name] += squares[name] / (draws * (draws - 1) if draws > 1 else float("nan"))

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        """Divide by the normaliser."""
        errors = {name: v.sqrt_().div_(normaliser) for name, v in self._variances.items()}
        return Sampled({name: t.div_(normaliser) for name, t in self._sums.items()}, errors)

    def _signs(self, parameter: Tensor) -> Tensor:
        import torch

        drawn = torch.randint(2, parameter.shape, generator=self._generator, dtype=torch.int8, device="cpu")
        return drawn.to(parameter.device).mul_(2).sub_(1)
