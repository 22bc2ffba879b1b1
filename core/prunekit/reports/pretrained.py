"""Pruned networks of transformers as folders that ``from_pretrained`` loads, with masks and where they come from."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.component import scalar
from prunekit.errors import CheckpointError, ResultsError, SpecError
from prunekit.network.quiet import without_bars
from prunekit.results.ours import EXPORT
from prunekit.version import __version__

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prunekit.results import Results

PROVENANCE = "prunekit.json"
"""What says where a folder comes from, and marks it as ours."""
_MASKS = "prunekit-masks.safetensors"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".index.json", ".py")
"""Endings of what is not copied from the folder that a network came from."""
_LARGEST = 64 << 20  # bytes of a file that is copied


def save_pretrained(
    model: nn.Module,
    out: Path,
    masks: Mapping[str, Tensor] | None,
    provenance: Mapping[str, Any],
    overwrite: bool,
) -> None:
    """Write a folder; see :func:`prunekit.save_pretrained`."""
    own: Any = model
    if not hasattr(own, "save_pretrained") or not hasattr(own, "config"):
        raise SpecError(
            f"save_pretrained: {type(model).__name__} is not a transformers network; save its state_dict(), or write a "
            "run's weights with prunekit export"
        )
    source = Path(str(getattr(own.config, "_name_or_path", "") or ""))
    with _folder(out, overwrite) as folder, _zeroed(model, masks):
        with without_bars():
            own.save_pretrained(folder)
        if source.name and source.is_dir():
            _copy_rest(source, folder)
        record = dict(provenance)
        if masks:
            record |= _counts(masks)
            _save_masks(folder / _MASKS, masks)
        record = {"prunekit_version": __version__, "writer": EXPORT, **record}
        (folder / PROVENANCE).write_text(
            json.dumps(record, indent=1, sort_keys=True, default=scalar), encoding="utf-8"
        )


def export_pretrained(results: Results, source: Path, out: Path, phase: str, overwrite: bool) -> None:
    """Put a run's weights into the network of a folder, and save it; see :meth:`RunResults.export_pretrained`."""
    model = _network(source)
    _fill(model, results, phase)
    summary = results.summary
    masks = None if phase == "dense" else _tensors(results.masks(len(summary["steps"])))
    steps = summary["steps"]
    provenance = {
        "run": {
            "spec": summary["spec"],
            "spec_hash": summary.get("spec_hash"),
            "status": summary["status"],
            "phase": phase,
            "steps": len(steps),
            "dense": summary["dense"],
            phase: summary[phase],
        }
    }
    save_pretrained(model, out, masks, provenance, overwrite)


def _network(source: Path) -> nn.Module:
    try:
        import transformers
    except ModuleNotFoundError:
        raise SpecError(
            "export --hf: the package transformers is not installed; pip install 'prunekit[hf]'"
        ) from None
    config = source / "config.json"
    try:
        names = json.loads(config.read_text(encoding="utf-8"))["architectures"]
        cls: Any = getattr(transformers, names[0])
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise SpecError(
            f"export --hf: {source}: is not the folder of a transformers network (config.json with the architecture's name)"
        ) from None
    try:
        with without_bars():
            network: nn.Module = cls.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds
        raise SpecError(f"export --hf: {source}: cannot be loaded: {error}") from error
    return network


def _fill(model: nn.Module, results: Results, phase: str) -> None:
    import torch

    stored = _tensors(results.weights(phase))
    own = dict(model.named_parameters())
    wrong = [name for name, p in own.items() if name not in stored or stored[name].shape != p.shape]
    if wrong:
        raise CheckpointError(
            f"export --hf: {results.path} does not hold the network of the folder: {', '.join(wrong[:6])} "
            f"{'is' if len(wrong) == 1 else 'are'} missing there, or of another shape"
        )
    buffers = dict(model.named_buffers())
    with torch.no_grad():
        for name, tensor in stored.items():
            target = own.get(name, buffers.get(name))
            if target is not None:
                target.copy_(tensor)


def _tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@contextmanager
def _zeroed(model: nn.Module, masks: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Within it, what is pruned is zero."""
    import torch

    from prunekit.masks.apply import checked

    before: dict[str, Tensor] = {}
    parameters = {} if masks is None else checked(model, masks)
    with torch.no_grad():
        for name, p in parameters.items():
            gone = ~(masks or {})[name].to(p.device)
            if bool(p[gone].any()):
                before[name] = p.detach().clone()
                p.masked_fill_(gone, 0)
        try:
            yield
        finally:
            for name, values in before.items():
                parameters[name].copy_(values)


def _counts(masks: Mapping[str, Tensor]) -> dict[str, Any]:
    sizes = {name: (mask.numel(), mask.numel() - int(mask.sum())) for name, mask in masks.items()}
    total, gone = (sum(column) for column in zip(*sizes.values(), strict=True))
    layers = {name: round(pruned / size, 6) for name, (size, pruned) in sizes.items() if size}
    return {"sparsity": gone / total, "prunable": total, "layers": layers}


def _save_masks(path: Path, masks: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: mask.cpu().contiguous() for name, mask in masks.items()}, path, {"writer": EXPORT})


def _copy_rest(source: Path, folder: Path) -> None:
    """Tokenizers and the like: what the network's own folder has beside weights and code."""
    for file in source.iterdir():
        there = (folder / file.name).exists()
        if there or not file.is_file() or file.name.endswith(_WEIGHTS) or file.stat().st_size > _LARGEST:
            continue
        shutil.copyfile(file, folder / file.name)


@contextmanager
def _folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder, which takes its name at the end.

    Raises:
        ResultsError: If something is there that must not be replaced, or the system refuses.
    """
    if out.exists() and not overwrite:
        raise ResultsError(
            f"{out}: exists; --overwrite (overwrite=True) replaces a folder that prunekit wrote"
        )
    if out.exists() and not (out / PROVENANCE).is_file():
        raise ResultsError(
            f"{out}: is not a folder that prunekit wrote (no {PROVENANCE} in it), so it is not replaced; remove it, or "
            "choose another name"
        )
    token = secrets.token_hex(8)
    temporary, old = (out.with_name(f"{out.name}.{token}.{end}") for end in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if out.exists():
            os.rename(out, old)
        try:
            os.rename(temporary, out)
        except OSError:
            if old.exists():
                os.rename(old, out)  # what was there is better than nothing
            raise
    except OSError as error:
        raise ResultsError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
