"""Statistics of several processes, each of which has seen some of the examples."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Generator, Tensor

from prunekit import distributed
from prunekit.errors import UnsupportedError
from prunekit.seeds import generator as seeded
from prunekit.statistics.base import Estimator
from prunekit.statistics.request import Sampled


def refuse_unshareable(estimators: Iterable[Estimator]) -> None:
    """Refuse what cannot be put together from its parts.

    Raises:
        UnsupportedError: Naming the statistic.
    """
    for estimator in estimators:
        if distributed.world() > 1 and estimator.needs_data and not estimator.additive:
            raise UnsupportedError(
                f"statistic {estimator.name!r} is not a sum over examples, so several processes cannot share "
                "it; use one process"
            )


def own_draws(generator: Generator) -> Generator:
    """A generator for this process: for one alone the given one, for others draws that do not repeat its own."""
    here = distributed.rank()
    return seeded(generator.initial_seed(), "process", here) if here else generator


def merged(estimator: Estimator, statistic: dict[str, Tensor]) -> dict[str, Tensor]:
    """The statistic of all examples, the same in every process; contiguous, whatever the weights' memory format."""
    for values in (statistic, *([statistic.standard_error] if isinstance(statistic, Sampled) else [])):
        values.update({name: value.contiguous() for name, value in values.items()})
    if distributed.world() == 1:
        return statistic
    if isinstance(statistic, Sampled):  # independent draws: variances add
        variances = distributed.total({name: e.square() for name, e in statistic.standard_error.items()})
        return Sampled(distributed.total(statistic), {name: v.sqrt() for name, v in variances.items()})
    if estimator.needs_data:
        return dict(distributed.total(statistic))
    distributed.take_first(statistic)
    return statistic
