"""What every probe promises: it looks on, at the moments that it names, and says what it found as plain data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from prunekit.component import Tensors, scalar
from prunekit.data import Split, Splits
from prunekit.observing.moment import Moment, Surroundings
from prunekit.observing.probe import MOMENTS, Moments, Probe
from prunekit.plugins.build import component, estimators, ranking
from prunekit.pruning.criterion import Criterion
from prunekit.pruning.sample import Sample
from prunekit.pruning.step import Pruner
from prunekit.records import ProbeRecord, Series
from prunekit.seeds import generator
from prunekit.statistics.joint import JointModel
from prunekit.statistics.request import Request, Statistic
from prunekit.testing import component as common
from prunekit.testing.guard import elsewhere, same, untouched
from prunekit.testing.situation import Levels, batch, network
from prunekit.testing.verdict import Subject, demand

Under = Subject[Probe]


def its_moments_are_moments(subject: Under) -> None:
    """Of dense, step, pruned, finetuned, end, and every n-th step."""
    try:
        Moments.parse(type(subject.component).moments)
    except ValueError as error:
        demand(False, f"moments {error}")


def a_record_is_plain_data(subject: Under) -> None:
    """Its summary is JSON, its attributes are numbers and short texts, its version a number from 1."""
    for where, record in _records(subject):
        demand(isinstance(record, ProbeRecord), f"at {where}: returned {type(record).__name__}")
        try:
            json.dumps(record.summary, default=scalar, allow_nan=True)
        except (TypeError, ValueError) as error:
            demand(False, f"at {where}: the summary is not JSON: {error}")
        for key, value in record.attributes.items():
            demand(
                isinstance(value, bool | int | float | str),
                f"at {where}: attribute {key} is {type(value).__name__}",
            )
        version = record.kind_version
        demand(isinstance(version, int) and version >= 1, f"at {where}: kind_version is {version!r}")


def arrays_have_as_many_axes_as_dimensions(subject: Under) -> None:
    """Each named once."""
    for where, record in _records(subject):
        for group, arrays in record.groups.items():
            for name, series in arrays.items():
                what = f"at {where}: {group}/{name}"
                demand(isinstance(series, Series), f"{what} is not a prunekit.Series")
                values = np.asarray(series.values)
                demand(values.dtype != object, f"{what} is not an array of numbers or texts")
                demand(
                    values.ndim == len(series.axes),
                    f"{what} has {values.ndim} dimensions and {len(series.axes)} axes {series.axes}",
                )
                demand(len(set(series.axes)) == len(series.axes), f"{what} names an axis twice")


def measuring_twice_gives_the_same(subject: Under) -> None:
    """With the same generator, whatever the global random states, also when built from the options."""
    rebuilt = type(subject.component).from_options(subject.component.options)
    for moment, _ in _moments(subject):
        first = _plain(subject.component.measure(moment, generator(0, "probe")))
        with elsewhere():
            second = _plain(subject.component.measure(moment, generator(0, "probe")))
            third = _plain(rebuilt.measure(moment, generator(0, "probe")))
        demand(same(first, second), f"at {moment.name}: differs when measured again")
        demand(same(first, third), f"at {moment.name}: differs when built from its options, without __init__")


def measuring_leaves_everything_alone(subject: Under) -> None:
    """The model, its masks, its data, and the process; a probe cannot change a result."""
    for moment, (model, splits) in _moments(subject):
        data = [
            t
            for split in (splits.train, splits.valid, splits.test)
            if split
            for t in (*split.inputs, split.y)
        ]
        masks = [moment._masks]
        with untouched(data, model, masks):
            subject.component.measure(moment, generator(0, "probe"))


CHECKS = (
    *common.CHECKS,
    its_moments_are_moments,
    a_record_is_plain_data,
    arrays_have_as_many_axes_as_dimensions,
    measuring_twice_gives_the_same,
    measuring_leaves_everything_alone,
)


class _Smallest(Criterion):
    """The smallest weights go."""

    name = "smallest"
    requires = frozenset({"gradient"})

    def joint_model(self, lam: float) -> JointModel:
        """One by which its steps can be judged."""
        return JointModel(Statistic("curvature_factors", curvature="ggn", draws=1), 0.1 + lam)

    def saliency(self, weights: Tensors, statistics: Mapping[Request, Tensors]) -> dict[str, torch.Tensor]:
        """|θ|."""
        return {k: w.abs() for k, w in weights.items()}


def _records(subject: Under) -> Iterator[tuple[str, ProbeRecord]]:
    for moment, _ in _moments(subject):
        yield moment.name, subject.component.measure(moment, generator(0, "probe"))


def _plain(record: ProbeRecord) -> object:
    groups = {
        group: {name: (np.asarray(s.values), s.axes, s.units) for name, s in arrays.items()}
        for group, arrays in record.groups.items()
    }
    return groups, dict(record.summary), dict(record.attributes)


def _sample(index: int) -> Sample:
    other = [batch(torch.float64)]
    return Sample([batch(torch.float64)], generator(0, "statistics", index), lambda: other)


def _moments(subject: Under) -> Iterator[tuple[Moment, tuple[torch.nn.Module, Splits]]]:
    """The moments of a small run that the probe asks for: trained, pruned in two steps, fine-tuned."""
    when = Moments.parse(type(subject.component).moments)
    train, valid, test = (Split(*batch(torch.float64)) for _ in range(3))
    splits = Splits(train, valid, test)
    model = network(torch.float64)
    loss = component("loss", "cross_entropy", subject.manager)
    phases: dict[str, dict[str, torch.Tensor]] = {}
    around = Surroundings(
        model,
        loss,
        lambda requests: estimators(requests, subject.manager),
        splits,
        phases,
        ranking=lambda criterion: ranking(criterion, subject.manager),
    )
    pruner = Pruner(around, _Smallest(), Levels(0.3, 0.5), component("selector", "global", subject.manager))

    def now() -> dict[str, torch.Tensor]:
        named = [*model.named_parameters(), *model.named_buffers()]
        return {name: t.detach().clone() for name, t in named}

    def moment(name: str) -> Iterator[tuple[Moment, tuple[torch.nn.Module, Splits]]]:
        if name in when.names:
            yield Moment(name, around, pruner.masks), (model, splits)

    assert set(when.names) <= set(MOMENTS)
    phases["dense"] = now()
    yield from moment("dense")
    for i, outcome in enumerate(pruner.outcomes(_sample)):
        if outcome.moment is not None and (when.at("step", i + 1) or (when.every > 2 and i == 1)):
            yield outcome.moment, (model, splits)
    phases["pruned"] = now()
    yield from moment("pruned")
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.mul_(1.01 if name not in pruner.masks else pruner.masks[name] * 1.01)
    phases["finetuned"] = now()
    yield from moment("finetuned")
    yield from moment("end")
