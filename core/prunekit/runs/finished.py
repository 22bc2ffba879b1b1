"""Blocks that are finished, beside the state of a run: one that is stopped continues with the next block."""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path

import torch

from prunekit.errors import ResultsError
from prunekit.network.stored import digest, written
from prunekit.pruning.blocks import Done

_NAME = r"\d+-[0-9a-f]{16}\.(safetensors|tmp)"


class FinishedBlocks:
    """What the blocks of one step have become, a file each, written whole or not at all.

    Args:
        folder: Of the run; made when there is something to keep.
        step: Number of the step, from 1.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._folder, self._step = folder, step

    def get(self, block: str) -> Done | None:
        """What a block has become; ``None`` where that is not there, or not as it was written."""
        from safetensors import SafetensorError, safe_open

        path = self._path(block)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
                about = file.metadata() or {}
        except (OSError, SafetensorError):
            return None
        if about.get("digest") != digest(tensors) or about.get("block") != block:
            return None
        masks = {key[5:]: t for key, t in tensors.items() if key.startswith("mask:")}
        values = {key[6:]: t for key, t in tensors.items() if key.startswith("value:")}
        predicted = float(tensors["predicted"]) if "predicted" in tensors else None
        return Done(masks, values, predicted)

    def put(self, block: str, done: Done) -> None:
        """Keep what a block has become.

        Raises:
            ResultsError: If it cannot be written.
        """
        tensors = {f"mask:{name}": mask.cpu().contiguous() for name, mask in done.masks.items()}
        tensors |= {f"value:{name}": value.detach().cpu().contiguous() for name, value in done.values.items()}
        if done.predicted is not None:
            tensors["predicted"] = torch.tensor(done.predicted, dtype=torch.float64)
        about = {"digest": digest(tensors), "block": block}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            written(self._path(block), tensors, about)
        except OSError as error:
            raise ResultsError(f"{self._folder}: cannot be written: {error.strerror or error}") from None

    def _path(self, block: str) -> Path:
        name = hashlib.sha256(block.encode()).hexdigest()[:16]
        return self._folder / f"{self._step}-{name}.safetensors"


def forget(folder: Path) -> None:
    """Remove what was kept of finished blocks, and the folder if nothing else is in it."""
    if folder.is_symlink() or not folder.is_dir():
        return
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if re.fullmatch(_NAME, path.name) and path.is_file():
                path.unlink()
        folder.rmdir()
