"""Labelled texts in tables on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from prunekit import DataError, Dataset, Options
from prunekit_plugins.datasets._tables import Columns, tables
from prunekit_plugins.datasets._tokens import padded, tokenizer

if TYPE_CHECKING:
    from prunekit import Split, Splits

_IGNORED = -100


class HuggingFaceDatasetOptions(Options):
    """Options.

    Attributes:
        path: A folder that ``save_to_disk`` of the library datasets wrote; one with files named after their splits, such as
            ``train.parquet``, ``validation.jsonl`` and ``test.csv``; or one such file.
        text: The column of texts.
        other: The column of second texts, for pairs; null = none.
        label: The column of labels: classes as numbers from 0 or as words (numbered in alphabetical order), or
            values; null = none: the texts are for a language model.
        tokenizer: A folder with a tokenizer; null: each byte is a token.
        length: Tokens in an example: longer texts are cut, shorter ones padded.
        most: Number of training examples to use, from the first; null = all.
    """

    path: Path
    text: str = "text"
    other: str | None = None
    label: str | None = "label"
    tokenizer: Path | None = None
    length: int = Field(default=128, ge=2)
    most: int | None = Field(default=None, ge=1)


class HuggingFaceDataset(Dataset):
    """Texts with labels: ``input_ids`` and ``attention_mask`` go in.

    Of pairs ``token_type_ids`` go in too, where the tokenizer has them. Labels of padding do not count. A split
    ``validation`` or ``val`` is ``valid``. Without a test split there is none.
    """

    name = "hf_dataset"
    Options = HuggingFaceDatasetOptions

    def load(self, seed: int) -> Splits:
        """Read and tokenize.

        Raises:
            DataError: If a file or a column is missing or cannot be read.
        """
        from prunekit import Splits

        options: HuggingFaceDatasetOptions = self.options
        found = tables(options.path, self._where)
        words, names = tokenizer(options.tokenizer, self._where), self._classes(found)
        splits = {}
        for split, columns in found.items():
            texts = self._column(columns, options.text, split)
            others: Sequence[Any] = [None] * len(texts)
            if options.other is not None:
                others = self._column(columns, options.other, split)
            rows = [
                words.encode(str(a), None if b is None else str(b))
                for a, b in zip(texts, others, strict=True)
            ]
            tokens, there = padded([tokens for tokens, _ in rows], options.length, words.pad)
            types = [some for _, some in rows if some is not None]
            segments = padded(types, options.length, 0)[0] if len(types) == len(rows) > 0 else None
            labels = None if options.label is None else self._column(columns, options.label, split)
            splits[split] = self._split(tokens, there, segments, labels, names)
        train, valid, test = (splits.get(name) for name in ("train", "valid", "test"))
        assert train is not None
        train = train.first(options.most)
        if options.label is None:
            return Splits(train, valid, test, outputs=words.size, loss="causal_lm")
        if train.y.is_floating_point():
            return Splits(train, valid, test, "regression")
        return Splits(train, valid, test, outputs=len(names) or None)

    @property
    def _where(self) -> str:
        return f"dataset {self.name!r}"

    def _column(self, columns: Columns, name: str, split: str) -> Sequence[Any]:
        if name not in columns:
            raise DataError(
                f"{self._where}: the {split} split has no column {name!r}; it has {', '.join(columns)}"
            )
        return columns[name]

    def _classes(self, found: dict[str, Columns]) -> list[str]:
        """The words that labels are, of all splits; none where they are numbers."""
        if self.options.label is None:
            return []
        labels = [
            label
            for split, columns in found.items()
            for label in self._column(columns, self.options.label, split)
        ]
        if not all(isinstance(label, str) for label in labels):
            return []
        try:
            [float(label) for label in labels]  # of a CSV file
        except ValueError:
            return sorted(set(labels))
        return []

    def _split(
        self,
        tokens: np.ndarray,
        there: np.ndarray,
        segments: np.ndarray | None,
        labels: Sequence[Any] | None,
        names: Sequence[str],
    ) -> Split:
        import torch

        from prunekit import Split

        x = {"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(there)}
        if segments is not None:
            x["token_type_ids"] = torch.from_numpy(segments)
        if labels is None:
            return Split(x, torch.from_numpy(np.where(there == 1, tokens, _IGNORED)))
        if names:
            labels = [names.index(label) for label in labels]
        try:
            values = torch.tensor([float(label) for label in labels])
        except (TypeError, ValueError):
            raise DataError(f"{self._where}: labels are neither numbers nor words") from None
        whole = bool((values == values.round()).all()) and not any(
            isinstance(label, float) for label in labels
        )
        return Split(x, values.long() if whole else values.unsqueeze(1))
