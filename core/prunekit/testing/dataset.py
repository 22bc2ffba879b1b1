"""What every data set promises: whole splits, the same from the same seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from prunekit.data import DataInfo, Dataset, Split, Splits
from prunekit.errors import DataError
from prunekit.testing import component as common
from prunekit.testing.guard import elsewhere, same, untouched
from prunekit.testing.verdict import Subject, demand, not_applicable

Under = Subject[Dataset]


def loads_splits_of_examples_with_a_target_each(subject: Under) -> None:
    """Training examples at least; tensors on the CPU."""
    splits = _load(subject)
    demand(isinstance(splits, Splits), f"returned {type(splits).__name__}, not a prunekit.Splits")
    demand(len(splits.train) > 0, "there are no training examples")
    for name, split in _each(splits):
        for what, t in _tensors(split).items():
            demand(isinstance(t, Tensor), f"{name}.{what} is {type(t).__name__}, not a tensor")
            demand(t.device.type == "cpu", f"{name}.{what} is on {t.device}")
            demand(len(t) == len(split.y), f"{name} has {len(t)} examples and {len(split.y)} targets")
        here, there = (
            {k: (t.shape[1:], t.dtype) for k, t in _tensors(s).items()} for s in (split, splits.train)
        )
        demand(
            here.keys() == there.keys() and all(here[k][0] == there[k][0] for k in here),
            f"examples or targets of {name} have another shape than those of train",
        )
        demand(
            all(here[k][1] == there[k][1] for k in here),
            f"examples or targets of {name} have another dtype than those of train",
        )


def _tensors(split: Split) -> dict[str, Tensor]:
    """Inputs and targets by name."""
    inputs = (
        {f"x.{name}": t for name, t in split.x.items()} if isinstance(split.x, Mapping) else {"x": split.x}
    )
    return {**inputs, "y": split.y}


def examples_and_targets_are_finite(subject: Under) -> None:
    """No missing value is left in."""
    for name, split in _each(_load(subject)):
        for what, t in _tensors(split).items():
            demand(bool(torch.isfinite(t).all()), f"{name}.{what} holds values that are not finite")


def targets_fit_the_task(subject: Under) -> None:
    """Class indices lie below the number of outputs, and a model can be sized."""
    splits = _load(subject)
    demand(splits.task in ("classification", "regression"), f"task is {splits.task!r}")
    info = splits.info
    demand(isinstance(info, DataInfo) and info.outputs >= 1, f"info is {info}")
    for name, split in _each(splits):
        if splits.task == "classification" and not split.y.is_floating_point() and len(split):
            counted = split.y[split.y >= 0] if split.y.ndim > 1 else split.y  # tokens may be ignored
            low, high = int(counted.min()), int(counted.max())
            demand(
                low >= 0 and high < info.outputs,
                f"{name}: classes from {low} to {high}, where there are {info.outputs}",
            )


def the_same_seed_loads_the_same_data(subject: Under) -> None:
    """Whatever the global random states; also when built from the options."""
    rebuilt = type(subject.component).from_options(subject.component.options)
    first = _load(subject)
    with elsewhere():
        second = rebuilt.load(0)
    for (name, one), (other_name, other) in zip(_each(first), _each(second), strict=True):
        demand(name == other_name, "other splits when loaded again")
        demand(same(one.x, other.x) and same(one.y, other.y), f"{name} differs when loaded again")


def augmentation_draws_from_its_generator_alone(subject: Under) -> None:
    """Keeps shapes and dtype, and leaves the examples that it is given alone."""
    splits = _load(subject)
    if splits.augment is None:
        not_applicable("has no augmentation")
    x = splits.train.first(8).x
    if not isinstance(x, Tensor):
        not_applicable("its inputs are not a single tensor")
    with untouched([x]):
        first = splits.augment(x, torch.Generator().manual_seed(0))
    with elsewhere():
        second = splits.augment(x, torch.Generator().manual_seed(0))
    demand(first.shape == x.shape and first.dtype == x.dtype, "changes the shape or the dtype of examples")
    demand(same(first, second), "draws from elsewhere than its generator")


def loading_leaves_the_process_alone(subject: Under) -> None:
    """It draws from its seed alone."""
    _load(subject)
    with untouched():
        _load(subject)


CHECKS = (
    *common.CHECKS,
    loads_splits_of_examples_with_a_target_each,
    examples_and_targets_are_finite,
    targets_fit_the_task,
    the_same_seed_loads_the_same_data,
    augmentation_draws_from_its_generator_alone,
    loading_leaves_the_process_alone,
)


def _load(subject: Under) -> Splits:
    try:
        return subject.component.load(0)
    except DataError as error:
        not_applicable(str(error))


def _each(splits: Splits) -> Iterator[tuple[str, Split]]:
    for name, split in (("train", splits.train), ("valid", splits.valid), ("test", splits.test)):
        if split is not None:
            yield name, split
