"""Where tensors wait that are needed later: where they are, in the CPU's memory, or in files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from prunekit.errors import RunError

T = TypeVar("T")

Offload: TypeAlias = Literal["none", "cpu", "disk"]
"""Where what is needed later waits: on its own device, in the CPU's memory, or in files of the system's temporary folder."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Shelf:
    """Holds structures of tensors until they are needed; a context manager, which removes its files in the end.

    Examples:
        >>> with Shelf("disk") as shelf:
        ...     later = shelf.put((torch.ones(2, dtype=torch.bfloat16), "text"))
        ...     later()
        (tensor([1., 1.], dtype=torch.bfloat16), 'text')
    """

    def __init__(self, where: Offload = "none") -> None:
        self.where = where
        self._folder: Path | None = None
        self._count = 0

    def close(self) -> None:
        """Remove the files; what waits there is lost."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __del__(self) -> None:
        self.close()

    def put(self, data: T) -> Callable[[], T]:
        """Keep a structure; what is returned gives a copy of it, as often as it is asked.

        Raises:
            RunError: If it cannot be written.
        """
        held = tree_map(lambda leaf: self._kept(leaf) if isinstance(leaf, Tensor) else leaf, data)

        def copy() -> T:
            given: T = tree_map(lambda leaf: leaf() if isinstance(leaf, _Waiting) else leaf, held)
            return given

        return copy

    def _kept(self, tensor: Tensor) -> _Waiting:
        t = tensor.detach()
        if self.where == "none":
            return _InMemory(t.clone(), t.device)
        if self.where == "cpu":
            return _InMemory(t.to("cpu", copy=True), t.device)
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="prunekit-"))
        self._count += 1
        return _InFile(self._folder / str(self._count), t)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Waiting:
    """A tensor that waits."""

    def __call__(self) -> Tensor:
        """A copy of it, on the device that it came from."""
        raise NotImplementedError


class _InMemory(_Waiting):
    def __init__(self, tensor: Tensor, device: torch.device) -> None:
        self._tensor, self._device = tensor, device

    def __call__(self) -> Tensor:
        return self._tensor.to(self._device, copy=True)


class _InFile(_Waiting):
    """The file goes when nobody asks for it any more."""

    def __init__(self, path: Path, tensor: Tensor) -> None:
        self._path, self._device = path, tensor.device
        self._shape, self._dtype = tensor.shape, tensor.dtype
        try:
            if tensor.numel():
                bits = tensor.to("cpu").contiguous().view(-1)
                bits.view(_BITS[tensor.element_size()]).numpy().tofile(path)
        except OSError as error:
            raise RunError(
                f"offload: {path.parent} cannot be written: {error.strerror or error}; set TMPDIR to a folder with room"
            ) from None

    def __call__(self) -> Tensor:
        if not self._shape.numel():
            return torch.empty(self._shape, dtype=self._dtype, device=self._device)
        bits = torch.from_file(
            str(self._path), size=self._shape.numel(), dtype=_BITS[self._dtype.itemsize], device="cpu"
        )
        return bits.clone().view(self._dtype).view(self._shape).to(self._device)

    def __del__(self) -> None:
        self._path.unlink(missing_ok=True)
