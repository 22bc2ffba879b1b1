"""The MONK's problems: three small tasks of telling robots apart by six attributes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from prunekit import DataError, Dataset, Options
from prunekit.foreign import read_start

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit import Split, Splits

_VALUES = (3, 3, 2, 3, 4, 2)  # of the six attributes: 17 inputs


class MonksOptions(Options):
    """Options.

    Attributes:
        root: Folder that holds ``monks-1.train`` and its like, or ``monks/`` with them.
        problem: Which of the three.
    """

    root: Path = Path("data")
    problem: int = Field(default=1, ge=1, le=3)


class Monks(Dataset):
    """Robots with six attributes, one-hot as 17 inputs; one output, 1 for robots of the class.

    124, 169 or 122 examples train, all 432 combinations test; a twentieth of the third problem's training
    labels are wrong. Targets are ``[N, 1]``, so the default loss is ``bce_with_logits``. UCI text format:
    class, attributes, name. Reference: Thrun et al. (1991).
    """

    name = "monks"
    Options = MonksOptions

    def load(self, seed: int) -> Splits:
        """Read the two files."""
        from prunekit import Splits

        train, test = map(_read, self.files())
        return Splits(train, test=test, outputs=1)

    def files(self) -> list[Path]:
        """The two files of the chosen problem: one to train, one to test."""
        return [self._find(f"monks-{self.options.problem}.{which}") for which in ("train", "test")]

    def _find(self, name: str) -> Path:
        root: Path = self.options.root
        path = next((p for p in (root / name, root / "monks" / name) if p.is_file()), None)
        if path is None:
            raise DataError(
                f"dataset 'monks': {name} is missing; put the UCI files into {root} or {root / 'monks'}"
            )
        return path


_MOST = 1 << 20  # bytes; the largest of the files has 8 thousand


def _read(path: Path) -> Split:
    import torch
    from torch.nn.functional import one_hot

    from prunekit import Split

    rows = []
    try:
        text = read_start(path, _MOST).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"dataset 'monks': {path}: cannot be read ({error})") from None
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        numbers = [int(w) for w in words[:7] if w.isdecimal()]
        fits = len(numbers) == 7 and numbers[0] in (0, 1)
        if not fits or any(not 1 <= v <= most for v, most in zip(numbers[1:], _VALUES, strict=True)):
            raise DataError(
                f"dataset 'monks': {path}:{number}: needs a class (0, 1) and six attributes of up to "
                f"{', '.join(map(str, _VALUES))}; found {line.strip()!r}"
            )
        rows.append(numbers)
    if not rows:
        raise DataError(f"dataset 'monks': {path}: holds no examples")
    table = torch.tensor(rows, device="cpu")
    columns: list[Tensor] = [one_hot(table[:, 1 + i] - 1, most) for i, most in enumerate(_VALUES)]
    return Split(torch.cat(columns, 1).float(), table[:, :1].float())
