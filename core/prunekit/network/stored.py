"""Weights in safetensors files, a tensor at a time, for networks that are larger than the memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from prunekit.errors import CheckpointError
from prunekit.foreign import unreadable
from prunekit.network.shards import weight_files


class StoredWeights:
    """The tensors of a folder by name; opened once, to see that every file is whole.

    Args:
        folder: With safetensors files, one or several with an index.

    Attributes:
        shapes: Name to shape.

    Raises:
        CheckpointError: If a file is missing, shorter than its header says, or not of safetensors.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self._folder, self._files = folder, dict[str, Path]()
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in weight_files(folder):
            if path.suffix != ".safetensors":
                raise CheckpointError(
                    f"{path}: only safetensors files are read a tensor at a time; load the network and save it again "
                    "(save_pretrained)"
                )
            if why := unreadable(path):
                raise CheckpointError(f"{path}: {why}")
            try:
                with safe_open(path, framework="pt") as file:
                    names = list(file.keys())
                    self.shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path}: not a complete safetensors file: {error}") from None
            twice = sorted(self._files.keys() & set(names))
            if twice:
                raise CheckpointError(f"{path}: {', '.join(twice[:4])} in more than one file")
            self._files |= dict.fromkeys(names, path)

    @property
    def files(self) -> list[Path]:
        """All of them, by name."""
        return sorted(set(self._files.values()))

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Some tensors, copies.

        Raises:
            CheckpointError: If a value is not finite.
        """
        from safetensors import SafetensorError, safe_open

        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self._files[name], []).append(name)
        found: dict[str, Tensor] = {}
        for path, some in by_file.items():
            try:
                with safe_open(path, framework="pt") as file:
                    found |= {name: file.get_tensor(name).clone() for name in some}
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path}: cannot be read any more: {error}") from None
        for name, tensor in found.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise CheckpointError(f"{self._files[name]}: {name} holds values that are not finite")
        return found


def placed(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Let a network hold a tensor under the name of one of its parameters or buffers."""
    path, _, key = name.rpartition(".")
    owner = module.get_submodule(path)
    if key in owner._parameters:
        owner._parameters[key] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[key] = tensor


def written(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    temporary = path.with_suffix(".tmp")
    save_file(
        {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}, temporary, dict(about)
    )
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o666 & ~mask)  # safetensors makes files that only their owner may read
    os.replace(temporary, path)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of some tensors on the CPU: names, types, shapes and values."""
    sums = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name]
        sums.update(f"{name} {t.dtype} {tuple(t.shape)};".encode())
        sums.update(t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sums.hexdigest()


def emptied(module: nn.Module, name: str) -> None:
    """Let go of what a network holds under a parameter's name."""
    path, _, key = name.rpartition(".")
    owner = module.get_submodule(path)
    held = owner._parameters.get(key)
    if held is not None:
        empty = torch.empty(held.shape, dtype=held.dtype, device="meta")
        owner._parameters[key] = nn.Parameter(empty, requires_grad=False)
