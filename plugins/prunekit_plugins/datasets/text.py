"""Text files, as windows of tokens for a language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from prunekit import DataError, Dataset, Options
from prunekit_plugins.datasets._tokens import Tokenizer, tokenizer

if TYPE_CHECKING:
    from prunekit import Split, Splits


class TextOptions(Options):
    """Options.

    Attributes:
        train: A text file in UTF-8, or a folder whose files are read in order of their names.
        valid: The same; null: a tenth of ``train``, cut off from its end.
        test: The same; null: a tenth of ``train``, cut off from the end of what is left.
        tokenizer: A folder with a tokenizer, as ``save_pretrained`` writes it; null: each byte is a token.
        window: Tokens in an example; windows follow one another, and the last, shorter one is left out.
        most: Number of windows of the training split to use, from the first; null = all.
    """

    train: Path
    valid: Path | None = None
    test: Path | None = None
    tokenizer: Path | None = None
    window: int = Field(default=128, ge=2)
    most: int | None = Field(default=None, ge=1)


class Text(Dataset):
    """Text in windows of tokens: ``input_ids`` ``[windows, window]`` goes in and also serves as labels.

    The default loss is ``causal_lm``. Files of one split follow each other, with the tokenizer's end of text between
    them where it has one.
    """

    name = "text"
    Options = TextOptions

    def load(self, seed: int) -> Splits:
        """Read and tokenize.

        Raises:
            DataError: If a file cannot be read, or is shorter than a window.
        """
        from prunekit import Splits

        options: TextOptions = self.options
        words = tokenizer(options.tokenizer, "dataset 'text'")
        train = _tokens(options.train, words)
        tenth, held = len(train) // 10, []
        for path in (options.valid, options.test):
            if path is None:
                train, cut = np.split(train, [len(train) - tenth])
            held.append(cut if path is None else _tokens(path, words))
        valid, test = held
        splits = [
            self._windows(name, part) for name, part in (("train", train), ("valid", valid), ("test", test))
        ]
        return Splits(
            splits[0].first(options.most), splits[1], splits[2], outputs=words.size, loss="causal_lm"
        )

    def _windows(self, name: str, tokens: np.ndarray) -> Split:
        import torch

        from prunekit import Split

        window = self.options.window
        count = len(tokens) // window
        if not count:
            raise DataError(
                f"dataset 'text': the {name} split has {len(tokens)} tokens, less than a window of {window}; give more "
                "text, or a smaller window"
            )
        windows = torch.from_numpy(tokens[: count * window].reshape(count, window))
        return Split({"input_ids": windows}, windows.clone())


def _tokens(path: Path, words: Tokenizer) -> np.ndarray:
    """Of a file, or of all files of a folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    if not files:
        raise DataError(f"dataset 'text': {path} holds no file")
    parts = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise DataError(f"dataset 'text': {file}: is not text in UTF-8") from None
        except OSError as error:
            raise DataError(f"dataset 'text': {file}: cannot be read: {error.strerror}") from None
        parts.append(words.plain(text))
        if words.end is not None:
            parts.append(np.array([words.end], dtype=np.int64))
    return np.concatenate(parts)
