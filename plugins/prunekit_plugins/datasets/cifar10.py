"""CIFAR-10 from its binary files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from prunekit import DataError, Dataset, Options
from prunekit.units import readable_bytes

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from prunekit import Splits

_FOLDER = "cifar-10-batches-bin"
_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_TEST = "test_batch.bin"
_RECORD = 1 + 3 * 32 * 32
_MOST = 1 << 28  # bytes
_MEAN = (0.4914, 0.4822, 0.4465)
_DEVIATION = (0.247, 0.243, 0.261)


class CIFAR10Options(Options):
    """Options.

    Attributes:
        root: Folder that holds ``cifar-10-batches-bin/``, or that folder itself.
        valid: Validation examples, the last of the 50,000 training images.
        train: Number of training examples to use, from the first of the split; null = all.
        test: Number of test examples to use, from the first; null = all.
    """

    root: Path = Path("data")
    valid: int = Field(default=5_000, ge=0, lt=50_000)
    train: int | None = Field(default=None, ge=1)
    test: int | None = Field(default=None, ge=1)


class CIFAR10(Dataset):
    """60,000 images of ten classes, ``[N, 3, 32, 32]``: 45,000 train, 5,000 validation, 10,000 test.

    As in the paper: the last 5,000 training images are for validation, channels are standardised by fixed
    means and deviations, and training images are padded by 4, cropped and flipped at random. Pruning and
    measuring use the images as they are. Nothing is downloaded.
    """

    name = "cifar10"
    Options = CIFAR10Options

    def load(self, seed: int) -> Splits:
        """Read the six files."""
        import torch

        from prunekit import Split, Splits

        folder = self._folder()
        train = [self._read(folder / name) for name in _TRAIN]
        x, y = np.concatenate([a for a, _ in train]), np.concatenate([b for _, b in train])
        test_x, test_y = self._read(folder / _TEST)
        mean = torch.tensor(_MEAN, device="cpu").view(3, 1, 1)
        deviation = torch.tensor(_DEVIATION, device="cpu").view(3, 1, 1)

        def split(images: np.ndarray, labels: np.ndarray) -> Split:
            # In place, piece by piece: 50,000 float images are 600 MB, and no second copy is needed.
            scaled = torch.from_numpy(images).float()
            scaled.div_(255).sub_(mean).div_(deviation)
            return Split(scaled, torch.from_numpy(labels).long())

        count = len(x) - self.options.valid
        splits = Splits(
            train=split(x[:count], y[:count]),
            valid=split(x[count:], y[count:]) if self.options.valid else None,
            test=split(test_x, test_y),
            outputs=10,
            augment=partial(crop_and_flip, black=[-m / d for m, d in zip(_MEAN, _DEVIATION, strict=True)]),
        )

        return splits.limited(self.options.train, self.options.test)

    def files(self) -> list[Path]:
        """The six binary files of CIFAR-10: five to train, one to test."""
        folder = self._folder()
        return [folder / name for name in (*_TRAIN, _TEST)]

    def _folder(self) -> Path:
        root: Path = self.options.root
        for folder in (root / _FOLDER, root):
            if (folder / _TEST).is_file() or (folder / _TRAIN[0]).is_file():
                missing = [n for n in (*_TRAIN, _TEST) if not (folder / n).is_file()]
                if missing:
                    raise DataError(f"dataset 'cifar10': {', '.join(missing)} missing in {folder}")
                return folder
        raise DataError(
            f"dataset 'cifar10': no {_FOLDER} in {root}. Unpack the binary version of CIFAR-10 there "
            f"({', '.join((*_TRAIN, _TEST))}), or set dataset.root; nothing is downloaded."
        )

    def _read(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        if path.stat().st_size > _MOST:
            raise DataError(f"{path}: has more than {readable_bytes(_MOST)}; CIFAR-10's files have 29 MiB")
        raw = np.fromfile(path, dtype=np.uint8)
        if len(raw) == 0 or len(raw) % _RECORD:
            raise DataError(
                f"{path}: {len(raw)} bytes, not a whole number of {_RECORD}-byte images; truncated or damaged"
            )
        records = raw.reshape(-1, _RECORD)
        if int(records[:, 0].max()) > 9:
            raise DataError(f"{path}: holds the label {int(records[:, 0].max())}; CIFAR-10 has 0 to 9")
        return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def crop_and_flip(x: Tensor, generator: Generator, black: Sequence[float]) -> Tensor:
    """Pad by 4, crop back at random and flip half of the images: one gather for the whole batch.

    Args:
        x: ``[N, C, H, W]``, standardised.
        generator: CPU generator.
        black: What a black pixel has become by standardising, per channel: the padding.
    """
    import torch
    import torch.nn.functional as F

    n, channels, height, width = x.shape
    shift = torch.randint(0, 9, (2, n), generator=generator, device="cpu").to(x.device)
    flip = torch.rand(n, generator=generator, device="cpu").to(x.device) < 0.5
    rows = shift[0].unsqueeze(1) + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device).expand(n, width)
    columns = torch.where(flip.unsqueeze(1), width - 1 - columns, columns) + shift[1].unsqueeze(1)
    level = torch.tensor(black, dtype=x.dtype, device=x.device).view(1, channels, 1, 1)
    padded = F.pad(x - level, (4, 4, 4, 4)) + level
    flat = (rows.unsqueeze(2) * (width + 8) + columns.unsqueeze(1)).view(n, 1, -1)
    return padded.flatten(2).gather(2, flat.expand(n, channels, -1)).view_as(x)
