"""Pictures in folders, one for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from prunekit import DataError, Dataset, Options

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Split, Splits

_SPLITS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_Three = Annotated[tuple[float, float, float], Field(strict=False)]


class ImageFolderOptions(Options):
    """Options.

    Attributes:
        path: A folder with ``train`` and, where there are such splits, ``valid`` (or ``val``, ``validation``) and ``test``,
            each with a folder of pictures for each class.
        size: Size of every picture: its shorter side is scaled to it, then the central square is cut out.
        mean: Mean of each channel, from 0 to 1, which is subtracted.
        std: Standard deviation of each channel, which it is divided by.
        inputs: The network's argument that takes the pictures; null = the first. Transformers networks call it
            ``pixel_values``.
    """

    path: Path
    size: int = Field(default=224, ge=1)
    mean: _Three = (0.485, 0.456, 0.406)
    std: _Three = (0.229, 0.224, 0.225)
    inputs: str | None = None


class ImageFolder(Dataset):
    """Pictures ``[3, size, size]``; classes are numbered by the order of their folders' names."""

    name = "image_folder"
    Options = ImageFolderOptions

    def load(self, seed: int) -> Splits:
        """Read every picture.

        Raises:
            DataError: If there are none, a picture is damaged, or the splits have other classes.
        """
        from prunekit import Splits

        path: Path = self.options.path
        classes: list[str] = []
        splits: dict[str, Split | None] = {}
        for split, names in _SPLITS.items():
            folder = next((path / name for name in names if (path / name).is_dir()), None)
            if folder is None:
                splits[split] = None
                continue
            own = sorted(p.name for p in folder.iterdir() if p.is_dir())
            classes = classes or own
            if unknown := sorted(set(own) - set(classes)):
                raise DataError(
                    f"dataset 'image_folder': {folder} has classes that train does not have: {', '.join(unknown[:6])}"
                )
            splits[split] = self._split(folder, classes)
        train = splits["train"]
        if train is None:
            raise DataError(
                f"dataset 'image_folder': {path} has no folder train, with a folder of pictures for each class"
            )
        return Splits(train, splits["valid"], splits["test"], outputs=len(classes))

    def _split(self, folder: Path, classes: Sequence[str]) -> Split:
        import torch

        from prunekit import Split

        files = [
            (file, number)
            for number, name in enumerate(classes)
            for file in sorted((folder / name).rglob("*"))
            if file.suffix.lower() in _ENDINGS
        ]
        if not files:
            raise DataError(f"dataset 'image_folder': {folder} holds no pictures in folders of classes")
        x = torch.stack([self._picture(file) for file, _ in files])
        y = torch.tensor([number for _, number in files])
        return Split(x if self.options.inputs is None else {self.options.inputs: x}, y)

    def _picture(self, file: Path) -> Tensor:
        import torch
        from PIL import Image

        size: int = self.options.size
        try:
            with Image.open(file) as opened:
                picture = opened.convert("RGB")
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"dataset 'image_folder': {file}: cannot be read: {error}") from None
        scale = size / min(picture.size)
        width, height = (max(size, round(n * scale)) for n in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        values = np.asarray(picture.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
        mean, std = (np.asarray(v, dtype=np.float32) for v in (self.options.mean, self.options.std))
        return torch.from_numpy((values - mean) / std).permute(2, 0, 1).contiguous()
