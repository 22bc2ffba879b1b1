"""Sentences with labels and a small BERT without training: what examples/bert_glue_like/run.yaml starts from.

The sentences are Python's own help pages, the label the page that a sentence is from.

python examples/bert_glue_like/make.py [FOLDER]
"""

from __future__ import annotations

import json
import pydoc_data.topics
import random
import re
import sys
from pathlib import Path

import tokenizers
import torch
import transformers

PAGES = {
    "specialnames": "data model",
    "debugger": "debugger",
    "formatstrings": "formatting",
    "import": "import",
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def sentences() -> list[dict[str, str]]:
    rows = []
    for page, label in PAGES.items():
        text = re.sub(r"\s+", " ", pydoc_data.topics.topics[page])
        rows += [
            {"text": part.strip(), "label": label} for part in re.split(r"(?<=[.:]) ", text) if len(part) > 30
        ]
    random.Random(0).shuffle(rows)
    return rows


def tokenizer(rows: list[dict[str, str]]) -> transformers.PreTrainedTokenizerFast:
    """WordPiece as BERT has it, learnt from the sentences."""
    own = tokenizers.BertWordPieceTokenizer()
    own.train_from_iterator(
        (row["text"] for row in rows), vocab_size=1200, special_tokens=SPECIAL, show_progress=False
    )
    names = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True)
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=own._tokenizer, **names)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "bert_glue_like")
    torch.manual_seed(0)
    (folder / "sentences").mkdir(parents=True, exist_ok=True)
    rows = sentences()
    fifth = len(rows) // 5
    for name, part in (
        ("test", rows[:fifth]),
        ("validation", rows[fifth : 2 * fifth]),
        ("train", rows[2 * fifth :]),
    ):
        lines = "\n".join(json.dumps(row) for row in part)
        (folder / "sentences" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    words = tokenizer(rows)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        num_labels=len(PAGES),
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder / "model")
    words.save_pretrained(folder / "model")
    print(f"{len(rows)} sentences and model in {folder}")


if __name__ == "__main__":
    main()
