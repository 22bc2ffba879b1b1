"""From a resolved spec to the things themselves: device, data, network, loss."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from prunekit import distributed
from prunekit.component import Component
from prunekit.data import DataInfo, Split, Splits
from prunekit.errors import DataError, DeviceError, PrunekitWarning, SpecError
from prunekit.losses.base import Loss
from prunekit.losses.metric import Metric
from prunekit.masks.memory import tie
from prunekit.network.call import call
from prunekit.network.measure import metric_names
from prunekit.network.restore import evaluating, named_tensors, preserved_rng, usual_defaults
from prunekit.plugins.build import component, estimators
from prunekit.plugins.host import PluginManager
from prunekit.pruning.criterion import Criterion
from prunekit.pruning.scheduler import Scheduler
from prunekit.pruning.selector import Selector
from prunekit.pruning.until import Until, limited
from prunekit.records import Plain
from prunekit.runs.identity import digest, fingerprint, inputs, spec_hash
from prunekit.runs.shared import Shared
from prunekit.seeds import derived
from prunekit.spec.resolve import Part, Spec

_DEFAULT_LOSS = {"classification": "cross_entropy", "regression": "mse"}


@dataclass(frozen=True)
class Pruning:
    """What a run prunes with.

    Attributes:
        lam: Locality weight λ.
        needed: The probes that the scheduler wants asked of every proposal.
        until: Where it stops before its end; the scheduler keeps to it.
    """

    criterion: Criterion
    lam: float
    scheduler: Scheduler
    selector: Selector
    needed: frozenset[str]
    until: Until | None

    def helpers(self, manager: PluginManager) -> list[type[Component]]:
        """The statistics and probes that these ask for."""
        statistics = estimators(self.criterion.required(self.lam), manager).values()
        return [*map(type, statistics), *(manager.get("probe", name) for name in self.needed)]


@dataclass(frozen=True)
class Plan:
    """A spec with what the data decide, and everything built; nothing run.

    Attributes:
        pruning: ``None`` for a run that does not prune.
        bound: The spec's data; nothing in it is left open.
        spec_hash: Of the values that determine the results.
        inputs: The files that the run reads, as the spec names them, to the digests of their contents.
        plugins: The distributions whose plugins take part, to their versions.
        metrics: What is measured beside loss and error, by label.
        examples: A digest of the examples, where the data set reads no file whose digest would tell; else ``None``.
    """

    model: nn.Module
    splits: Splits
    loss: Loss
    pruning: Pruning | None
    device: torch.device
    dtype: torch.dtype
    bound: dict[str, Plain]
    spec_hash: str
    inputs: dict[str, str]
    plugins: dict[str, str]
    metrics: dict[str, Metric]
    examples: str | None


def choose_device(name: str) -> torch.device:
    """``auto`` is the first CUDA device where there is one, else the CPU; of several processes, each has its own.

    Raises:
        DeviceError: If the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if distributed.world() == 1:
            return torch.device(name)
    device = torch.device(name)
    if device.type == "cuda" and distributed.world() > 1:
        device = distributed.local_device()
        if name not in ("cuda", str(device)):
            raise DeviceError(
                f"device {name!r} is one GPU for several processes; with 'cuda' each has its own"
            )
        name = str(device)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
            raise DeviceError(f"device {name!r} does not exist here; this machine has {there}")
    return device


def bind(spec: Spec, manager: PluginManager, shared: Shared | None = None) -> Plan:
    """Load the data, decide what the spec leaves to them, build the network, read its checkpoint.

    Args:
        spec: Resolved.
        manager: What plugins there are.
        shared: May have the data already.

    Raises:
        DataError, CheckpointError, DeviceError, SpecError: If something is missing or does not fit.
    """
    folder = spec.base.resolve()
    if not folder.is_dir():
        raise SpecError(
            f"folder: relative paths in the spec start there, but there is no folder {folder}; give the one where its "
            "files are now"
        )
    device, dtype = choose_device(spec.settings.device), getattr(torch, spec.settings.dtype)
    if device.type == "cuda" and distributed.world() > 1:
        torch.cuda.set_device(device)
    splits, examples = (shared or Shared()).once(
        "data", _data_key(spec, device, dtype), lambda: _on(device, dtype, *load_data(spec))
    )
    _check_data(splits, str(spec.data["dataset"]["name"]))
    loss = choose_loss(spec, splits, manager)
    for _, split in _there(splits):
        if len(split):
            loss.check(split.y)
    info = splits.info_for(loss.counted)
    _say_gaps(splits, loss, info, str(spec.data["dataset"]["name"]))
    model = new_network(spec, info, dtype)
    part = _part(spec, "model")
    checkpoint = part.engine["checkpoint"]
    if checkpoint is not None:
        from prunekit.network.checkpoint import load_into

        load_into(model, part.locate(checkpoint))
    model = model.to(device)
    model.eval()
    measured: dict[str, Metric] = {
        part.engine["label"] or part.cls.name: part.build() for part in spec.listed("evaluate")
    }
    _check_fit(model, splits, loss, measured)
    phases = spec.settings.train, spec.settings.finetune
    trained = any(phase is not None and phase.epochs for phase in phases)
    if trained and not any(p.requires_grad for p in model.parameters()):
        raise SpecError("train: the model has no trainable parameter; leave train and finetune out")
    pruning = _pruning(spec, splits)
    # A spec that is taken from results finds the same files, wherever it is run.
    bound = {
        **spec.data,
        "folder": str(folder),
        "loss": {"name": loss.name, **loss.options.model_dump(mode="json")},
    }
    return Plan(
        model,
        splits,
        loss,
        pruning,
        device,
        dtype,
        bound,
        spec_hash(spec, bound, device.type),
        inputs(spec),
        manager.versions(
            [
                *(part.cls for part in spec.parts.values()),
                type(loss),
                *(pruning.helpers(manager) if pruning is not None else ()),
            ]
        ),
        measured,
        examples,
    )


def _on(
    device: torch.device, dtype: torch.dtype, loaded: Splits, examples: str | None
) -> tuple[Splits, str | None]:
    return loaded.to(device, dtype), examples


def _data_key(spec: Spec, device: torch.device, dtype: torch.dtype) -> str:
    """What decides the examples: the data set, its files' contents, and what they become."""
    files = {str(file): digest(file) for file in _part(spec, "dataset").build().files()}
    return json.dumps([spec.data["dataset"], str(spec.base), files, str(device), str(dtype)], sort_keys=True)


def load_data(spec: Spec) -> tuple[Splits, str | None]:
    """The data set as it is, and a digest of its examples where it reads no file whose digest would tell.

    Raises:
        DataError: If it cannot be read, or holds something else than tensors.
    """
    with usual_defaults():
        data = _part(spec, "dataset")
        dataset = data.build()
        loaded: Splits = dataset.load(data.engine["split_seed"])
    _check_tensors(loaded, str(spec.data["dataset"]["name"]))
    return loaded, None if dataset.files() else fingerprint(loaded)


def new_network(spec: Spec, info: DataInfo, dtype: torch.dtype) -> nn.Module:
    """The spec's network on the CPU, with the weights that its seed gives; no checkpoint is read."""
    with preserved_rng(), usual_defaults():
        torch.manual_seed(derived(spec.data["seeds"]["init"], "model"))
        model: nn.Module = _part(spec, "model").build().build(info)
    tie(model)  # a conversion would part what lies over one memory
    return model.to(dtype)  # before a checkpoint, whose values may need more digits than float32 has


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent and other buffers, tied ones once, sparse ones not, detached copies."""
    return {name: t.clone() for name, t in tensors(model).items()}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of :func:`state_of` themselves, detached."""
    return {name: t.detach() for name, t in named_tensors(model).items()}


def load_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put :func:`state_of` back."""
    with torch.no_grad():
        for name, t in named_tensors(model).items():
            t.copy_(state[name])


def _part(spec: Spec, *path: str | int) -> Part:
    part = spec.part(*path)
    assert part is not None, path
    return part


def _pruning(spec: Spec, splits: Splits) -> Pruning | None:
    part, settings = spec.part("prune", "criterion"), spec.settings.prune
    if part is None or settings is None:
        return None
    criterion: Criterion = part.build()
    chosen = _part(spec, "prune", "scheduler")
    scheduler: Scheduler = chosen.build()
    needed = scheduler.needed(criterion, fresh=(settings.examples or len(splits.train)) < len(splits.train))
    until = None if chosen.engine["until"] is None else Until.model_validate(chosen.engine["until"])
    if until is not None:
        _check_metric(until.metric, splits)
        scheduler = limited(scheduler, until)
    lam, selector = part.engine["lambda"], _part(spec, "prune", "selector").build()
    return Pruning(criterion, lam, scheduler, selector, needed, until)


def _check_metric(metric: str, splits: Splits) -> None:
    """Refuse a metric that the run does not measure."""
    names = [n for n in metric_names(splits) if len(getattr(splits, n.split("_")[0]) or ())]
    if metric not in names:
        raise SpecError(
            f"prune.scheduler.until.metric: {metric!r} is not measured here, because the split or the classes are "
            f"missing; accepted are {', '.join(names)}"
        )


def choose_loss(spec: Spec, splits: Splits, manager: PluginManager) -> Loss:
    """The spec's loss, or the one that the data call for."""
    part = spec.part("loss")
    if part is not None:
        chosen: Loss = part.build()
        return chosen
    # A classification whose targets are numbers between 0 and 1 for a single output.
    one = splits.task == "classification" and splits.train.y.is_floating_point() and splits.outputs == 1
    name = splits.loss or ("bce_with_logits" if one else _DEFAULT_LOSS[splits.task])
    default: Loss = component("loss", name, manager)
    return default


def _check_tensors(splits: Splits, name: str) -> None:
    for which, split in _there(splits):
        wrong = [
            type(t).__name__ for t in (*split.inputs, split.y) if not isinstance(t, Tensor) or not t.ndim
        ]
        if wrong or not split.inputs:
            raise DataError(
                f"dataset {name!r}: the {which} split holds {', '.join(wrong) or 'no inputs'}; accepted are x, a "
                "tensor or a mapping of tensors, and y, a tensor, with the example on the first axis of each"
            )


def _check_data(splits: Splits, name: str) -> None:
    for which, split in _there(splits):
        keys = [f" ({key!r})" for key in split.x] if isinstance(split.x, Mapping) else [""]
        for key, t in zip(keys, split.inputs, strict=True):
            if len(t) != len(split.y):
                raise DataError(
                    f"dataset {name!r}: the {which} split has {len(t)} examples{key} and {len(split.y)} targets"
                )
        whats = [*(f"inputs{key}" for key in keys), "targets"]
        for what, t in zip(whats, (*split.inputs, split.y), strict=True):
            # One NaN or infinity makes the sum so; only then is it worth looking at every value.
            suspect = t.is_floating_point() and not bool(torch.isfinite(t.sum()))
            if suspect and not bool(torch.isfinite(t).all()):
                raise DataError(f"dataset {name!r}: the {which} split's {what} are not all finite")
    if not len(splits.train):
        raise DataError(f"dataset {name!r}: the training split is empty")


def _say_gaps(splits: Splits, loss: Loss, info: DataInfo, name: str) -> None:
    """Warn of classes that no example has: labels that start at 1, or have gaps, give the network outputs for nothing."""
    one_each = splits.task == "classification" and splits.train.y.ndim == 1
    if splits.outputs is not None or not one_each or splits.train.y.is_floating_point():
        return
    labels: set[int] = set()
    for y in splits.labels(loss.counted):
        labels.update(y.unique().tolist())  # type: ignore[no-untyped-call]
    if not labels or min(labels) < 0:  # the loss refuses negative ones
        return
    missing = list(islice((k for k in range(info.outputs) if k not in labels), 6))
    if not missing:
        return
    some = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
    warnings.warn(
        f"dataset {name!r}: labels go from {min(labels)} to {max(labels)}, and no example has {some}; classes are "
        f"counted from 0, so the network gets {info.outputs} outputs for {len(labels)} classes. Number the classes "
        "without gaps, or give the loss's ignore_index where a label stands for 'not labelled'",
        PrunekitWarning,
        stacklevel=3,
    )


def _there(splits: Splits) -> Iterator[tuple[str, Split]]:
    for which, split in (("train", splits.train), ("valid", splits.valid), ("test", splits.test)):
        if split is not None:
            yield which, split


def _check_fit(model: nn.Module, splits: Splits, loss: Loss, measured: Mapping[str, Metric]) -> None:
    """Run a few examples through network, loss and metrics, so that a mismatch is told before any work."""
    for name, split in (("training", splits.train), ("validation", splits.valid), ("test", splits.test)):
        if split is None or not len(split):
            continue
        indices = torch.zeros(1, dtype=torch.long, device=split.y.device)
        if not split.y.is_floating_point():  # class indices: the ends of their range
            targets = split.y.reshape(len(split), -1).long()
            left_out = ~loss.counted(split.y).reshape(targets.shape)
            if targets.shape[1]:
                largest = targets.masked_fill(left_out, int(targets.min())).amax(1).argmax()
                smallest = targets.masked_fill(left_out, int(targets.max())).amin(1).argmin()
                indices = torch.stack([indices[0], largest, smallest])
        few = split.take(indices)
        try:
            with evaluating(model):
                outputs = call(model, few.x).detach().cpu()
            # On the CPU, where a class that the network lacks is an error; CUDA would not survive it.
            loss.total(outputs, few.y.cpu())
            loss.errors(outputs, few.y.cpu())
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise SpecError(
                f"model, dataset and loss do not fit: {name} examples of shape {_shape(few)} with "
                f"targets of shape {tuple(few.y.shape[1:])} ({few.y.dtype}) under loss {loss.name!r} fail with: {error}"
            ) from error
        for metric in measured.values():
            metric.sums(outputs, few.y.cpu(), loss)


def _shape(split: Split) -> str:
    """The shape of one example, for messages."""
    if isinstance(split.x, Mapping):
        return ", ".join(f"{tuple(t.shape[1:])} ({key})" for key, t in split.x.items())
    return str(tuple(split.x.shape[1:]))
