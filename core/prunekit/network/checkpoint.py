"""Read weights from a file; a file from a stranger never executes code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import CheckpointError, ResultsError, pass_interruption
from prunekit.foreign import damage_of_archive, read_start, unreadable
from prunekit.network.fitting import misfit, unusual
from prunekit.network.shards import weight_files
from prunekit.results import open_results

_NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights")
"""Under which names other tools keep the weights beside other things."""
_DEPTH = 3


def read(path: Path) -> dict[str, Tensor]:
    """Read a ``.safetensors`` or torch (``.pt``, ``.pth``) checkpoint, or the last network of a results file (``.h5``).

    A folder, or an index of several files, is read as what its files hold together.

    Raises:
        CheckpointError: If a file is missing, damaged, or not a mapping of names to tensors, or two hold one name.
    """
    together: dict[str, Tensor] = {}
    for file in weight_files(path):
        part = _read(file)
        twice = sorted(together.keys() & part.keys())
        if twice:
            raise CheckpointError(f"checkpoint {path}: {', '.join(twice[:4])} in more than one of its files")
        together |= part
    return together


def _read(path: Path) -> dict[str, Tensor]:
    if why := unreadable(path):
        raise CheckpointError(f"checkpoint {path}: {why}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"checkpoint {path}: not a complete safetensors file: {error}") from None
    if path.suffix == ".h5":
        return _last_network(path)
    try:
        if read_start(path, 4) == b"PK\x03\x04" and (wrong := damage_of_archive(path)):
            raise CheckpointError(f"checkpoint {path}: damaged: {wrong}")
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch raises several kinds for damaged and for unsafe files
        pass_interruption(error)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if re.search("weights.only", reason, re.IGNORECASE):  # torch goes on to advise how to run such a file
            reason = "it holds other objects, or is damaged"
        raise CheckpointError(
            f"checkpoint {path}: not a complete torch checkpoint that holds only tensors "
            f"(nothing else is loaded, since it could run code): {reason}"
        ) from None
    for _ in range(_DEPTH):
        if isinstance(content, Mapping):
            content = next(
                (content[key] for key in _NESTED if isinstance(content.get(key), Mapping)), content
            )
    if not isinstance(content, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        held = ", ".join(map(repr, list(content)[:8])) if isinstance(content, Mapping) else ""
        raise CheckpointError(
            f"checkpoint {path}: must hold names and tensors, by themselves or under one of {', '.join(_NESTED)}; found "
            f"{type(content).__name__}{f' with {held}' if held else ''}"
        )
    return dict(content)


def _last_network(path: Path) -> dict[str, Tensor]:
    """The fine-tuned, pruned or dense network of a complete run, whichever was the last."""
    try:
        with open_results(path) as results:
            summary = results.summary
            if summary["status"] != "complete":
                raise CheckpointError(
                    f"checkpoint {path}: its run is {summary['status']!r}, so its last network is not the final one; finish "
                    "it with --resume, or give an export of the intended network"
                )
            last = [phase for phase in ("dense", "pruned", "finetuned") if summary[phase] is not None][-1]
            return {name: torch.from_numpy(array) for name, array in results.weights(last).items()}
    except ResultsError as error:
        raise CheckpointError(f"checkpoint {error}") from None


def _without_prefix(
    stored: dict[str, Tensor], expected: Mapping[str, Tensor], parameters: Sequence[Sequence[str]]
) -> dict[str, Tensor]:
    """The tensors under the model's own names, where the file has one prefix before all of them.

    Wrappers leave one behind: ``module.`` (several devices), ``_orig_mod.`` (compiled), ``model.`` (Lightning).

    Args:
        stored: What the file holds.
        expected: What the model holds.
        parameters: The names of each parameter, several where it is tied.
    """
    if not parameters or any(name in stored for names in parameters for name in names):
        return stored
    first = parameters[0]
    prefixes = {key.removesuffix(name) for key in stored for name in first if key.endswith(f".{name}")}
    for prefix in sorted(prefixes, key=len):
        if all(any(prefix + name in stored for name in names) for names in parameters):
            own = {name: stored.pop(prefix + name) for name in expected if prefix + name in stored}
            return own | {key.removeprefix(prefix): tensor for key, tensor in stored.items()}
    return stored


def _without_masks(stored: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they act, where ``torch.nn.utils.prune`` has split some into ``NAME_orig`` and ``NAME_mask``."""
    acting = dict(stored)
    if any(name.endswith("_orig") for name in expected):
        return acting
    for name in (key.removesuffix("_orig") for key in stored if key.endswith("_orig")):
        weight, mask = stored[f"{name}_orig"], stored.get(f"{name}_mask")
        if mask is None or name in stored or unusual(weight) or unusual(mask) or mask.shape != weight.shape:
            continue
        del acting[f"{name}_orig"], acting[f"{name}_mask"]
        acting[name] = weight.where(mask != 0, 0)
    return acting


def load_into(model: nn.Module, path: Path) -> None:
    """Load a checkpoint whose tensors must be just the model's.

    Raises:
        CheckpointError: Naming the tensors that are missing, unexpected, of another shape or odd type, or hold values that
            are not finite or not the model's type's.
    """
    expected = model.state_dict()
    # A file may hold a tied tensor once, under any of its names.
    aliases: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(tensor), []).append(name)
    stored = _without_prefix(_without_masks(read(path), expected), expected, list(aliases.values()))
    for names in aliases.values():
        source = next((n for n in names if n in stored), None)
        if source is not None:
            for name in names:
                if name in expected:
                    stored.setdefault(name, stored[source])
    # An export also holds buffers that are not saved with a model (constants made when it is built).
    for name, _ in model.named_buffers():
        if name not in expected:
            stored.pop(name, None)
    # Batch normalisation in eval mode does not use the counter, and files of older torch, and of other tools, lack it.
    for name, tensor in expected.items():
        if name.endswith("num_batches_tracked"):
            stored.setdefault(name, tensor)
    problems = [f"{n}: missing" for n in expected if n not in stored]
    problems += [f"{n}: not in the model" for n in stored if n not in expected]
    for name, tensor in expected.items():
        if name in stored and (wrong := misfit(stored[name], tensor)):
            problems.append(f"{name}: {wrong}")
    if problems:
        shown = problems[:8] + ([f"and {len(problems) - 8} more"] if len(problems) > 8 else [])
        raise CheckpointError(f"checkpoint {path} does not fit the model: " + "; ".join(shown))
    model.load_state_dict(stored)
