"""Text as tokens: by bytes, or by a tokenizer from a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from prunekit import DataError
from prunekit_plugins._extra import extra

BYTES = 256


class Tokenizer(Protocol):
    """What the data sets need of one.

    Attributes:
        size: How many tokens there are.
        end: The token that ends a text; ``None`` if there is none.
        pad: The token that fills up.
    """

    size: int
    end: int | None
    pad: int

    def encode(self, text: str, other: str | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Tokens of a text, or of a pair, with the tokenizer's own special tokens; and which of the two each belongs to."""

    def plain(self, text: str) -> np.ndarray:
        """Tokens of a text and nothing else, int64."""


class Bytes:
    """Each byte of UTF-8 is a token."""

    size = BYTES
    end: int | None = None
    pad = 0

    def encode(self, text: str, other: str | None = None) -> tuple[np.ndarray, None]:
        """Of a pair, one text after the other, with a line's end between."""
        return self.plain(text if other is None else f"{text}\n{other}"), None

    def plain(self, text: str) -> np.ndarray:
        """The bytes."""
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)


class FromFolder:
    """The tokenizer of a folder, by ``tokenizer.json`` or whatever transformers finds there."""

    def __init__(self, folder: Path, where: str) -> None:
        if not folder.is_dir():
            raise DataError(
                f"{where}: {folder} is not a folder; accepted is one with a tokenizer (tokenizer.json)"
            )
        transformers = extra("transformers", "hf", where)
        try:
            self._own: Any = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # it raises many kinds
            raise DataError(f"{where}: {folder} holds no tokenizer that can be read: {error}") from error
        self.size = len(self._own)
        self.end: int | None = self._own.eos_token_id
        pad = self._own.pad_token_id
        self.pad = int(pad if pad is not None else self.end or 0)

    def encode(self, text: str, other: str | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """With the special tokens that the tokenizer puts around a text or a pair."""
        found = self._own(text, other, truncation=False)
        types = found.get("token_type_ids") if other is not None else None
        tokens = np.asarray(found["input_ids"], dtype=np.int64)
        return tokens, None if types is None else np.asarray(types, dtype=np.int64)

    def plain(self, text: str) -> np.ndarray:
        """Without any."""
        return np.asarray(
            self._own(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64
        )


def tokenizer(folder: Path | None, where: str) -> Tokenizer:
    """The tokenizer of a folder, or bytes."""
    return Bytes() if folder is None else FromFolder(folder, where)


def padded(texts: Sequence[np.ndarray], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one length, cut or filled up, and which of them is text, both int64 ``[texts, length]``."""
    tokens = np.full((len(texts), length), pad, dtype=np.int64)
    there = np.zeros((len(texts), length), dtype=np.int64)
    for row, text in enumerate(texts):
        count = min(length, len(text))
        tokens[row, :count], there[row, :count] = text[:count], 1
    return tokens, there
