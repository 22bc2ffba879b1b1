"""Arrays of the user's own."""

from __future__ import annotations

import difflib
import re
import warnings
import zipfile
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prunekit import DataError, Dataset, Options, PrunekitWarning
from prunekit.foreign import damage_of_arrays

if TYPE_CHECKING:
    from prunekit import Split, Splits


_ARRAYS = ("train_x", "train_y", "valid_x", "valid_y", "test_x", "test_y")
_OTHER_WORDS = {
    "validation": "valid",
    "valx": "validx",
    "valy": "validy",
    "dev": "valid",
    "inputs": "x",
    "images": "x",
    "data": "x",
    "targets": "y",
    "labels": "y",
}


class ArraysOptions(Options):
    """Options.

    Attributes:
        path: A ``.npz`` file with ``train_x``, ``train_y`` and, where there are such splits, ``valid_x``,
            ``valid_y``, ``test_x``, ``test_y``.
    """

    path: Path


class Arrays(Dataset):
    """The arrays of a ``.npz`` file, used as they are: no shuffling, no scaling.

    Integer targets make it classification, with labels from 0 (what the loss ignores aside); floating-point
    targets, regression. Floating-point arrays and pixels (uint8, bool) take the run's dtype; wider integers are tokens.
    Arrays of other names are not read, and one whose name looks like that of a split is refused; so are pickled objects.
    """

    name = "npz"
    Options = ArraysOptions

    def load(self, seed: int) -> Splits:
        """Read the file's arrays, and make a split of each pair of inputs and targets."""
        from prunekit import Splits

        path: Path = self.options.path
        if wrong := damage_of_arrays(path):
            raise DataError(
                f"dataset 'npz': {path}: {wrong}; expected are the arrays train_x and train_y and, where there "
                "are such splits, valid_x, valid_y, test_x, test_y (numpy.savez)"
            )
        arrays: dict[str, np.ndarray] = {}
        others: list[str] = []
        try:
            # numpy does not close what it opens and then cannot read.
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                for key in file.files:
                    if key in _ARRAYS:
                        arrays[key] = file[key]
                    else:
                        others.append(key)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, TypeError) as error:
            # numpy's own words would advise to allow pickles, which execute code.
            why = "pickled objects, which are refused" if "pickle" in str(error) else str(error)
            raise DataError(f"dataset 'npz': {path}: not a complete .npz of plain arrays ({why})") from None
        _refuse_misnamed(path, arrays, others)
        splits = {name: self._split(path, arrays, name) for name in ("train", "valid", "test")}
        train = splits["train"]
        if train is None:
            raise DataError(f"dataset 'npz': {path}: no train_x; it holds {', '.join(others) or 'nothing'}")
        regression = train.y.is_floating_point()
        return Splits(
            train, splits["valid"], splits["test"], "regression" if regression else "classification"
        )

    def _split(self, path: Path, arrays: dict[str, np.ndarray], name: str) -> Split | None:
        import torch

        from prunekit import Split

        x, y = arrays.get(f"{name}_x"), arrays.get(f"{name}_y")
        if x is None and y is None:
            return None
        if x is None or y is None:
            lacking = f"{name}_x" if x is None else f"{name}_y"
            raise DataError(f"dataset 'npz': {path}: {lacking} is missing")
        for key, array in ((f"{name}_x", x), (f"{name}_y", y)):
            if array.ndim == 0 or array.dtype.kind not in "fiub":
                raise DataError(
                    f"dataset 'npz': {path}: {key} is {array.dtype} of shape {array.shape}; "
                    "needs numbers with one row per example"
                )
        if len(x) != len(y):
            raise DataError(f"dataset 'npz': {path}: {name}_x has {len(x)} rows and {name}_y has {len(y)}")
        targets, inputs = torch.from_numpy(_native(y)), torch.from_numpy(_native(x))
        if not targets.is_floating_point():
            targets = targets.long()
        if inputs.dtype in (torch.uint8, torch.bool):  # pixels; tokens are wider integers and stay
            inputs = inputs.float()
        return Split(inputs, targets)


def _refuse_misnamed(path: Path, arrays: Collection[str], others: Sequence[str]) -> None:
    """Refuse names that look like those of a split that is not there, and say of others that nothing reads them.

    Raises:
        DataError: Naming the first, and what it should be called.
    """
    missing = {re.sub("[^a-z]", "", name): name for name in _ARRAYS if name not in arrays}
    for other in others:
        near = difflib.get_close_matches(_plain_name(other), missing, n=1, cutoff=0.7)
        if near:
            raise DataError(
                f"dataset 'npz': {path}: holds {other}, which no split takes; did you mean {missing[near[0]]!r}? "
                f"The names are {', '.join(_ARRAYS)}"
            )
    if others:
        warnings.warn(
            f"dataset 'npz': {path}: nothing reads {', '.join(others)}", PrunekitWarning, stacklevel=2
        )


def _plain_name(name: str) -> str:
    """In lower case, with the words that others use for a split and for its parts."""
    plain = re.sub("[^a-z]", "", name.lower())
    for word, ours in _OTHER_WORDS.items():
        plain = plain.replace(word, ours)
    halves = re.fullmatch("([xy])(train|valid|test)", plain)
    return halves[2] + halves[1] if halves else plain


def _native(array: np.ndarray) -> np.ndarray:
    """Contiguous, in the machine's byte order and in a type that torch has."""
    double = array.dtype.kind == "f" and array.dtype.itemsize > 8
    return np.ascontiguousarray(array, dtype=np.float64 if double else array.dtype.newbyteorder("="))
