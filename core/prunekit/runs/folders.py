"""Pruning from one folder into another, block by block: a network that is never held as a whole.

A block's weights are read from the files when its turn comes, pruned, written, and let go of. What is outside of blocks
(embeddings, a last norm, a head) stays in memory. Blocks that are written already are not pruned again, so what is stopped
continues with the next block.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from prunekit.component import scalar
from prunekit.data import Skeleton, Split
from prunekit.errors import CheckpointError, ResultsError, SpecError
from prunekit.losses.base import Loss
from prunekit.masks.apportion import pruned_count
from prunekit.masks.axes import layers_of
from prunekit.masks.prunable import prunable_parameters
from prunekit.network.call import Inputs
from prunekit.network.heap import map_large
from prunekit.network.remembered import trust
from prunekit.network.restore import preserved_rng, taking_turns
from prunekit.network.stored import StoredWeights, digest, written
from prunekit.observing.moment import Surroundings
from prunekit.plugins.build import estimators
from prunekit.plugins.host import PluginManager
from prunekit.pruning.blockwise import Blockwise
from prunekit.pruning.criterion import Criterion
from prunekit.pruning.sample import Sample
from prunekit.pruning.scheduler import Scheduler, check_levels
from prunekit.pruning.selector import Selector
from prunekit.pruning.sequential import Sequential
from prunekit.pruning.swapped import Swept
from prunekit.results.ours import EXPORT
from prunekit.runs.folder import AllKept, Folder, InPlace, Live
from prunekit.runs.plan import choose_loss, load_data
from prunekit.seeds import derived, generator
from prunekit.spec.resolve import Spec
from prunekit.version import __version__

PROVENANCE = "prunekit.json"
_PARTIAL = ".partial"
_IDENTITY = "prunekit-identity.txt"
_REST = 1 << 29  # bytes of a file of what is in no block, about
_DISK = 5e8  # bytes per second
_BATCH = 4  # examples that enter the network together
_NOT_COPIED = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".h5",
    ".msgpack",
    ".gguf",
    ".onnx",
    ".index.json",
    ".py",
)
_LARGEST = 64 << 20  # bytes of a file that is copied


@dataclass(frozen=True)
class Expected:
    """What pruning a folder will take.

    Attributes:
        seconds: On this machine, from how fast it forms products of matrices now.
        memory: Bytes at the peak, beside what the process has already.
        disk: Bytes of the new folder, and of what waits in files meanwhile.
        blocks: How many there are.
        weights: Prunable ones.
        unknown: The criterion, where it does not say what a layer takes beside the passes: then time and memory are the
            least that there can be.
    """

    seconds: float
    memory: int
    disk: int
    blocks: int
    weights: int
    unknown: str | None = None


@dataclass
class Report:
    """What became of a folder.

    Attributes:
        out: The new folder.
        layers: Parameter to its sparsity.
        sparsity: Over all prunable weights.
        prunable: How many there are.
        seconds: That this call took.
    """

    out: Path
    layers: dict[str, float] = field(default_factory=dict)
    sparsity: float = 0.0
    prunable: int = 0
    seconds: float = 0.0


def expected(spec: Spec, manager: PluginManager) -> Expected:
    """What :func:`prune_folder` will take; nothing is computed or written."""
    return _Job(spec, manager).expected()


def prune_folder(
    spec: Spec,
    out: Path,
    manager: PluginManager,
    resume: bool = False,
    overwrite: bool = False,
    told: Callable[[str, int, int], None] = lambda block, done, total: None,
) -> Report:
    """Prune the network of a spec's folder into another; see :func:`prunekit.prune_folder`."""
    started = time.perf_counter()
    map_large()
    job = _Job(spec, manager)
    partial_out = _claimed(out, job.identity, resume, overwrite)
    with taking_turns(), preserved_rng():
        torch.default_generator.manual_seed(derived(spec.settings.seed, "passes"))
        report = job.go(partial_out, told)
    report.out, report.seconds = out, time.perf_counter() - started
    job.finish(partial_out, report)
    _renamed(partial_out, out)
    return report


class _Job:
    """A spec that prunes a folder, checked and ready."""

    def __init__(self, spec: Spec, manager: PluginManager) -> None:
        self.spec, self.settings = spec, spec.settings
        prune = spec.settings.prune
        if prune is None or prune.sequential is None:
            raise SpecError(
                "prune.sequential: is required, as it says which blocks there are; without it the network is held whole"
            )
        unfit = [
            key
            for key, given in (
                ("train", spec.settings.train),
                ("finetune", spec.settings.finetune),
                ("probes", spec.settings.probes),
                ("prune.recalibrate_batchnorm", prune.recalibrate_batchnorm),
            )
            if given
        ]
        if unfit:
            raise SpecError(
                f"{', '.join(unfit)}: needs the whole network, which is not held here; leave it out, or use run"
            )
        self.sequential: Sequential = prune.sequential
        model = spec.part("model")
        assert model is not None
        with taking_turns():
            skeleton: Skeleton | None = model.build().skeleton()
        if skeleton is None or model.engine["checkpoint"] is not None:
            raise SpecError(
                f"model {model.cls.name!r}: has no folder to read block by block; accepted is hf, without a checkpoint"
            )
        self.folder, self.network = skeleton.folder, skeleton.network
        for module in self.network.modules():
            trust(module)
        self.stored = StoredWeights(self.folder)
        self._refuse_other_names()
        self.parameters = prunable_parameters(self.network, prune.prunable)
        self.layers = layers_of(self.network, self.parameters)
        self.total = sum(layer.size for layer in self.layers)
        self.criterion: Criterion = spec.parts["prune", "criterion"].build()
        self.lam: float = spec.parts["prune", "criterion"].engine["lambda"]
        self.selector: Selector = spec.parts["prune", "selector"].build()
        scheduler: Scheduler = spec.parts["prune", "scheduler"].build()
        if scheduler.adapts or spec.parts["prune", "scheduler"].engine["until"] is not None:
            raise SpecError("prune.scheduler: pruning from folder to folder needs a fixed schedule")
        self.budgets = [pruned_count(level, self.total) for level in check_levels(scheduler.planned())]
        if prune.sequential.inputs == "dense" and len(self.budgets) > 1:
            raise SpecError(
                f"prune.scheduler: {len(self.budgets)} steps; with inputs: dense each of them would begin with all blocks "
                "as the step before left them, so a folder is pruned in a single step. Take one step, or inputs: pruned"
            )
        self.selector.check(self.layers, self.budgets)
        self.criterion.check(self.layers, self.budgets)
        splits, _ = load_data(spec)
        self.loss = choose_loss(spec, splits, manager)
        count, total = prune.examples, len(splits.train)
        chosen = torch.arange(total, device="cpu")
        if count is not None and count < total:
            draws = generator(spec.data["seeds"]["sample"], "examples", 0)
            chosen = torch.randperm(total, generator=draws, device="cpu")[:count]
        self.examples: Split = splits.train.take(chosen)
        self.warnings: list[str] = []
        surroundings = Surroundings(
            self.network, self.loss, partial(estimators, manager=manager), memory=spec.settings.memory
        )
        self.home = Folder(self.network, self.stored)
        self.blockwise = Blockwise(
            surroundings,
            self.sequential,
            Live(self.network, list(self.parameters)),
            self.layers,
            self._warn,
            lambda items, kept: None,
            self.home,
        )
        self.costs = self.blockwise.check(self.criterion, self.lam, self.selector, self.budgets)

    def expected(self) -> Expected:
        """From counts of operations and bytes."""
        shapes = self.stored.shapes
        sizes = {n: torch.Size(shape).numel() for n, shape in shapes.items()}
        blocks = {
            name: sum(size for n, size in sizes.items() if n.startswith(f"{name}."))
            for name in self.blockwise.scene.blocks
        }
        outside = sum(size for n, size in sizes.items() if not n.startswith(tuple(f"{b}." for b in blocks)))
        tokens = (
            self.examples.inputs[0].shape[:2].numel()
            if self.examples.inputs[0].ndim > 1
            else len(self.examples)
        )
        statistics = list(
            self.blockwise.scene.surroundings.estimators(self.criterion.required(self.lam)).values()
        )
        passes = 2 if not self.blockwise.goes_back else 2 + 1 + 2  # once more forwards, and backwards
        operations = 2.0 * passes * sum(blocks.values()) * tokens
        layers = [layer for block in self.blockwise.scene.blocks.values() for layer in block.layers]
        said = all(self.criterion.cost(layer) is not None for layer in layers)
        largest = 0
        for name, block in self.blockwise.scene.blocks.items():
            held = 4 * blocks[name]
            work = 0
            for layer in block.layers:
                more, most = self.criterion.cost(layer) or (0.0, 0)
                operations += more * len(self.budgets)
                work = max(work, most)
                for statistic in statistics:
                    more, most = statistic.cost(layer, tokens)
                    operations += more * len(self.budgets)
                    held += most
            largest = max(largest, held + work)
        width = max((shape[0] for shape in shapes.values() if len(shape) == 1), default=1)
        boundary = 2 * 4 * tokens * width
        waits = self.sequential.offload == "disk"
        memory = 4 * outside + largest + self.blockwise.scene.memory + (boundary // 8 if waits else boundary)
        stored = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        seconds = operations / _pace() + 3 * stored / _DISK
        unknown = None if said else self.criterion.name
        return Expected(seconds, memory, stored + boundary * waits, len(blocks), self.total, unknown)

    @property
    def identity(self) -> str:
        """A digest of what decides the result: the spec, the examples, and the files of weights by size and time."""
        data = {k: v for k, v in self.spec.data.items() if k not in ("name", "recorders", "folder")}
        tensors = dict(enumerate([*self.examples.inputs, self.examples.y]))
        examples = digest({str(number): t.cpu() for number, t in tensors.items()})
        files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.stored.files]
        text = json.dumps([data, examples, files, __version__], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def go(self, folder: Path, told: Callable[[str, int, int], None]) -> Report:
        """Prune all blocks that are not written yet."""
        goes_back = self.blockwise.goes_back
        self.home.begin(self.blockwise.scene.blocks, folder, told, goes_back)
        report = Report(folder, prunable=self.total)
        count = len(self.examples)
        inputs, normaliser = list[Inputs](), 0.0
        for start in range(0, count, _BATCH):
            some = self.examples.take(torch.arange(start, min(count, start + _BATCH), device="cpu"))
            inputs.append(some.x)
            normaliser += _normaliser(self.loss, some.y)
        draws = generator(self.spec.data["seeds"]["sample"], "statistics", 0)
        masks = self.home.masks = AllKept(self.parameters)
        swept = Swept(masks, InPlace(self.blockwise.scene.parameters))
        self.blockwise.walk(
            inputs,
            normaliser / count,
            swept,
            self.criterion,
            self.lam,
            self.selector,
            [0] * len(self.layers),
            self.budgets,
            self.home,
            Sample([(self.examples.x, self.examples.y)], draws) if goes_back else None,
        )
        report.layers = self.home.sparsities
        gone = sum(round(report.layers[layer.name] * layer.size) for layer in self.layers)
        report.sparsity = gone / self.total
        return report

    def finish(self, folder: Path, report: Report) -> None:
        """Write what is in no block, the index, and whatever else belongs to the folder."""
        rest = [name for name in self.stored.shapes if name not in self.home.written]
        for number, names in enumerate(self._in_pieces(rest)):
            file = f"rest-{number:05}.safetensors"
            written(folder / file, self.stored.read(names), {"format": "pt"})
            self.home.written |= dict.fromkeys(names, file)
        files = sorted(set(self.home.written.values()))
        final = {file: f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i, file in enumerate(files)}
        for file, name in final.items():
            os.replace(folder / file, folder / name)
        size = sum((folder / name).stat().st_size for name in final.values())
        index = {
            "metadata": {"total_size": size},
            "weight_map": {name: final[file] for name, file in sorted(self.home.written.items())},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
        for source in self.folder.iterdir():
            there = (folder / source.name).exists() or source.name.endswith(_NOT_COPIED)
            if source.is_file() and not there and source.stat().st_size <= _LARGEST:
                shutil.copyfile(source, folder / source.name)
        record = {
            "prunekit_version": __version__,
            "writer": EXPORT,
            "identity": self.identity,
            "spec": self.spec.data,
            "sparsity": report.sparsity,
            "prunable": report.prunable,
            "layers": {name: round(share, 6) for name, share in report.layers.items()},
            "seconds": round(report.seconds, 3),
            "warnings": self.warnings,
        }
        text = json.dumps(record, indent=1, sort_keys=True, default=scalar)
        (folder / PROVENANCE).write_text(text, encoding="utf-8")

    def _in_pieces(self, names: list[str]) -> Iterator[list[str]]:
        piece, size = list[str](), 0
        for name in names:
            piece.append(name)
            size += 4 * torch.Size(self.stored.shapes[name]).numel()
            if size > _REST:
                yield piece
                piece, size = [], 0
        if piece:
            yield piece

    def _refuse_other_names(self) -> None:
        """Refuse files whose tensors have other names than the network's, or other shapes."""
        tied = {name for name, _ in self.network.named_parameters(remove_duplicate=False)}
        own = dict(self.network.named_parameters())
        missing = [n for n in own if n not in self.stored.shapes]
        wrong = [
            n for n, p in own.items() if n in self.stored.shapes and self.stored.shapes[n] != tuple(p.shape)
        ]
        strange = [
            n for n in self.stored.shapes if n not in tied and n not in dict(self.network.named_buffers())
        ]
        if missing or wrong:
            some = ", ".join((missing or wrong)[:4])
            raise CheckpointError(
                f"{self.folder}: {some} {'is not in the files' if missing else 'has a different shape there'}"
                + (f", which hold {', '.join(strange[:4])}" if strange else "")
                + "; a network whose files use other names or shapes than its parameters has to be pruned in memory: "
                "prunekit run, then export --hf"
            )

    def _warn(self, kind: str, text: str) -> None:
        if f"{kind}: {text}" not in self.warnings:
            self.warnings.append(f"{kind}: {text}")


def _pace() -> float:
    """Floating-point operations per second of a product of matrices, measured."""
    a = torch.ones(1024, 1024, device="cpu")
    a @ a
    started = time.perf_counter()
    for _ in range(4):
        a @ a
    return 4 * 2 * 1024**3 / (time.perf_counter() - started)


def _normaliser(loss: Loss, targets: Tensor) -> float:
    """The loss's normaliser for some examples, from outputs of which only the shape is there."""
    outputs = torch.empty(*targets.shape, 1, device="meta")
    try:
        return loss.normaliser(outputs, targets)
    except Exception:  # one that looks at the outputs' values, or wants another shape
        return float(targets.numel())


def _claimed(out: Path, identity: str, resume: bool, overwrite: bool) -> Path:
    """The folder in which the new one is made.

    Raises:
        ResultsError: If something is there that must not be replaced, or what is there is of another spec.
    """
    partial_out = out.with_name(out.name + _PARTIAL)
    note = partial_out / _IDENTITY
    if out.exists():
        if not overwrite:
            raise ResultsError(
                f"{out}: exists; --overwrite (overwrite=True) replaces a folder that prunekit wrote"
            )
        if not (out / PROVENANCE).is_file():
            raise ResultsError(
                f"{out}: is not a folder that prunekit wrote (no {PROVENANCE} in it), so it is not replaced; remove it, or "
                "choose another name"
            )
    if partial_out.exists():
        if not note.is_file():
            raise ResultsError(
                f"{partial_out}: is not a folder that prunekit started; remove it, or choose another name"
            )
        if resume:
            if note.read_text(encoding="utf-8") != identity:
                raise ResultsError(
                    f"{partial_out}: was started with another spec or other files; --overwrite starts again"
                )
            return partial_out
        if not overwrite:
            raise ResultsError(
                f"{partial_out}: an earlier call was stopped; --resume continues with the next block, "
                "--overwrite starts again"
            )
        shutil.rmtree(partial_out)
    try:
        partial_out.mkdir(parents=True)
        note.write_text(identity, encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"{partial_out}: cannot be written: {error.strerror or error}") from None
    return partial_out


def _renamed(partial_out: Path, out: Path) -> None:
    for note in [partial_out / _IDENTITY, *partial_out.glob("*.digest")]:
        note.unlink()
    old = out.with_name(f"{out.name}.old")
    if out.exists():
        os.rename(out, old)
    os.rename(partial_out, out)
    shutil.rmtree(old, ignore_errors=True)
