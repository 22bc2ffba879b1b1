"""Which rule serves a weight: one capture for all examples, or the fallback example by example, or none, unused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Generator, Tensor, nn

from prunekit.losses.base import Loss
from prunekit.network.call import Batch, few_examples, unpack
from prunekit.statistics.base import Estimator
from prunekit.statistics.estimate import estimate
from prunekit.statistics.problem import ForwardPass, Problem
from prunekit.statistics.verification import forget

FAST, FALLBACK, UNUSED = "fast", "fallback", "unused"


class _Outputs(Loss):
    """Any outputs have a sum."""

    name = "outputs"

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.float().sum()

    def normaliser(self, outputs: Tensor, targets: Tensor) -> float:
        return float(len(outputs))


class _Look(Estimator):
    """Notes how the parameters are used."""

    name = "look"
    captures = True

    def start(self, problem: Problem) -> None:
        self._problem = problem
        self.rules = dict.fromkeys(problem.parameters, UNUSED)

    def add(self, batch: ForwardPass) -> None:
        for name, uses in batch.uses.items():
            if uses and self.rules[name] == UNUSED:
                self.rules[name] = FAST
        self.rules |= dict.fromkeys(batch.others, FALLBACK)

    def finish(self, normaliser: float) -> dict[str, Tensor]:
        return self._problem.zeros()


def served(model: nn.Module, batches: Iterable[Batch], parameters: Mapping[str, Tensor]) -> dict[str, str]:
    """How each parameter is served on a few examples of each batch: ``fast``, ``fallback`` or ``unused``.

    Args:
        model: Left as it was found.
        batches: What of them counts is the inputs.
        parameters: Those of interest.
    """
    look = _Look()
    few = [(few_examples(inputs), few_examples(targets)) for inputs, targets in map(unpack, batches)]
    try:
        estimate(model, few, {"look": look}, _Outputs(), parameters, Generator())
    finally:
        forget(model)  # a run is the same whether somebody has looked before
    return look.rules
