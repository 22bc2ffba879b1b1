"""MNIST and Fashion-MNIST from their IDX files."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from prunekit import DataError, Dataset, Options
from prunekit.foreign import read_declared, read_start

if TYPE_CHECKING:
    from prunekit import Splits

_FILES = {
    "train_x": "train-images-idx3-ubyte",
    "train_y": "train-labels-idx1-ubyte",
    "test_x": "t10k-images-idx3-ubyte",
    "test_y": "t10k-labels-idx1-ubyte",
}


class MNISTOptions(Options):
    """Options.

    Attributes:
        root: Folder that holds the files, ``MNIST/raw/`` or ``raw/`` with them, gzipped or not.
        valid: Validation examples, drawn from the 60,000 training images.
        train: Number of training examples to use, from the first of the split; null = all.
        test: Number of test examples to use, from the first; null = all.
    """

    root: Path = Path("data")
    valid: int = Field(default=10_000, ge=0, lt=60_000)
    train: int | None = Field(default=None, ge=1)
    test: int | None = Field(default=None, ge=1)


class MNIST(Dataset):
    """70,000 handwritten digits, ``[N, 1, 28, 28]``: 50,000 train, 10,000 validation, 10,000 test.

    As in the paper: the training images are permuted by ``torch.randperm`` with the seed and the first
    50,000 train; pixels are standardised by their mean and standard deviation. Nothing is downloaded.
    """

    name = "mnist"
    Options = MNISTOptions
    folder: ClassVar[str] = "MNIST"

    def load(self, seed: int) -> Splits:
        """Read the four files."""
        import torch

        from prunekit_plugins.datasets._images import split_and_standardise

        arrays = {key: read_idx(self._find(name)) for key, name in _FILES.items()}
        for which in ("train", "test"):
            images, labels = arrays[f"{which}_x"], arrays[f"{which}_y"]
            if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
                raise DataError(
                    f"dataset {self.name!r}: the {which} files do not belong together: "
                    f"images {images.shape}, labels {labels.shape}"
                )
        x = torch.from_numpy(arrays["train_x"]).unsqueeze(1)
        y = torch.from_numpy(arrays["train_y"]).long()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed), device="cpu")
        train = len(x) - self.options.valid
        if train <= 0:
            raise DataError(
                f"dataset {self.name!r}: {len(x)} training images, valid takes {self.options.valid}"
            )
        test = (
            torch.from_numpy(arrays["test_x"]).unsqueeze(1),
            torch.from_numpy(arrays["test_y"]).long(),
        )
        splits = split_and_standardise(x[order], y[order], train, test, 10)
        return splits.limited(self.options.train, self.options.test)

    def files(self) -> list[Path]:
        """The four IDX files: images and labels, to train and to test."""
        return [self._find(name) for name in _FILES.values()]

    def _find(self, name: str) -> Path:
        root: Path = self.options.root
        folders = [root / self.folder / "raw", root / "raw", root]
        for folder in folders:
            for candidate in (folder / name, folder / f"{name}.gz", folder / name.replace("-idx", ".idx")):
                if candidate.is_file():
                    return candidate
        expected = ", ".join(f"{n}[.gz]" for n in _FILES.values())
        raise DataError(
            f"dataset {self.name!r}: {name} (or {name}.gz) is not in any of {', '.join(map(str, folders))}. "
            f"Put {expected} there, or set dataset.root; nothing is downloaded."
        )


class FashionMNIST(MNIST):
    """70,000 images of clothing in the format of MNIST, split and standardised in the same way."""

    name = "fashion_mnist"
    folder = "FashionMNIST"


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Raises:
        DataError: If it is damaged or truncated, or would become more than a file of its size can account for.
    """
    try:
        start = read_start(path, 4)
        if len(start) < 4 or start[:3] != b"\x00\x00\x08":
            raise DataError(f"{path}: not an IDX file of unsigned bytes")
        head = 4 + 4 * start[3]
        sizes = read_start(path, head)[4:]
        if len(sizes) != head - 4:
            raise DataError(f"{path}: truncated in its header")
        shape = struct.unpack(f">{start[3]}I", sizes)
        raw = read_declared(path, head, math.prod(shape))
    except OSError as error:
        raise DataError(f"{path}: {error}") from None
    return np.frombuffer(bytearray(raw), dtype=np.uint8, offset=head).reshape(shape)
