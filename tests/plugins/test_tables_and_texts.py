"""The data sets text, hf_dataset and image_folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import prunekit as pk
from prunekit_plugins.datasets.hf_dataset import HuggingFaceDataset
from prunekit_plugins.datasets.image_folder import ImageFolder
from prunekit_plugins.datasets.text import Text


def test_windows_of_bytes_lie_one_after_another_and_the_ends_are_held_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(chr(97 + i % 26) for i in range(200)))

    splits = Text(train=tmp_path / "a.txt", window=5).load(0)

    assert isinstance(splits.train.x, dict)
    whole = torch.cat([splits.train.y, splits.test.y, splits.valid.y]).flatten()  # type: ignore[union-attr]
    assert bytes(whole.tolist()).decode() == (tmp_path / "a.txt").read_text()
    assert (len(splits.train), len(splits.valid or ()), len(splits.test or ())) == (32, 4, 4)
    assert torch.equal(splits.train.x["input_ids"], splits.train.y)
    assert (splits.outputs, splits.loss) == (256, "causal_lm")


def test_a_folder_of_texts_is_read_in_the_order_of_names_and_what_is_no_text_is_refused(
    tmp_path: Path,
) -> None:
    for name, text in (("b.txt", "second "), ("a.txt", "first ")):
        (tmp_path / name).write_text(text * 9)

    splits = Text(train=tmp_path, valid=tmp_path / "a.txt", test=tmp_path / "b.txt", window=6, most=2).load(0)

    assert bytes(splits.train.y.flatten().tolist()) == b"first first "
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe")
    with pytest.raises(pk.DataError, match=r"c\.bin: is not text in UTF-8"):
        Text(train=tmp_path, window=6).load(0)
    with pytest.raises(pk.DataError, match="the train split has 44 tokens, less than a window of 99"):
        Text(train=tmp_path / "a.txt", window=99).load(0)


def test_the_tokenizer_of_a_folder_ends_each_file(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs prunekit[hf]")
    folder = _words(tmp_path)
    (tmp_path / "text").mkdir()
    for name in ("a", "b"):
        (tmp_path / "text" / name).write_text("red green blue " * 10)

    splits = Text(train=tmp_path / "text", tokenizer=folder, window=2).load(0)

    words = torch.cat([splits.train.y, splits.test.y, splits.valid.y]).flatten().tolist()  # type: ignore[union-attr]
    assert words[:3] == [2, 3, 4]
    assert words[30] == 0  # the end of the first text
    assert splits.outputs == 5


def _words(tmp_path: Path) -> Path:
    """A tokenizer of three words."""
    import tokenizers
    import transformers

    vocabulary = {"<end>": 0, "<pad>": 1, "red": 2, "green": 3, "blue": 4}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<end>", pad_token="<pad>")
    fast.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


ROWS: dict[str, list[dict[str, Any]]] = {
    "train": [
        {"text": "ab", "label": "no"},
        {"text": "abcdef", "label": "yes"},
        {"text": "c", "label": "no"},
    ],
    "validation": [{"text": "b", "label": "yes"}],
}


def _write(folder: Path, form: str) -> Path:
    for split, rows in ROWS.items():
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        if form == "jsonl":
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        elif form == "json":
            (folder / f"{split}.json").write_text(json.dumps(rows))
        elif form == "csv":
            lines = [",".join(columns), *(",".join(row.values()) for row in rows)]
            (folder / f"{split}.csv").write_text("\n".join(lines))
        elif form == "parquet":
            pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
            parquet.write_table(pyarrow.table(columns), folder / f"{split}-00000-of-00001.parquet")
    if form == "saved":
        datasets = pytest.importorskip("datasets", reason="needs prunekit[hf]")
        whole = datasets.DatasetDict(
            {split: datasets.Dataset.from_list(rows) for split, rows in ROWS.items()}
        )
        whole.save_to_disk(folder / "saved")
        return folder / "saved"
    return folder


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "parquet", "saved"])
def test_tables_of_any_form_give_the_same_examples(tmp_path: Path, form: str) -> None:
    splits = HuggingFaceDataset(path=_write(tmp_path, form), length=4).load(0)

    assert isinstance(splits.train.x, dict)
    assert splits.train.x["input_ids"].tolist() == [[97, 98, 0, 0], [97, 98, 99, 100], [99, 0, 0, 0]]
    assert splits.train.x["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert splits.train.y.tolist() == [0, 1, 0]
    assert splits.valid is not None
    assert splits.valid.y.tolist() == [1]
    assert splits.test is None
    assert (splits.outputs, splits.loss, splits.task) == (2, None, "classification")


def test_without_labels_they_are_texts_for_a_language_model_whose_padding_does_not_count(
    tmp_path: Path,
) -> None:
    splits = HuggingFaceDataset(path=_write(tmp_path, "jsonl"), label=None, length=3).load(0)

    assert splits.train.y.tolist() == [[97, 98, -100], [97, 98, 99], [99, -100, -100]]
    assert splits.loss == "causal_lm"


def test_pairs_have_the_tokenizers_own_segments(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs prunekit[hf]")
    tokenizers = pytest.importorskip("tokenizers")
    own = tokenizers.BertWordPieceTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    own.train_from_iterator(["one two three"], special_tokens=special, show_progress=False)
    names = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True)
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own._tokenizer, model_input_names=inputs, **names
    )
    fast.save_pretrained(tmp_path / "words")
    rows = [{"a": "one", "b": "two three", "label": 1}, {"a": "one two", "b": "three", "label": 0}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))

    data = HuggingFaceDataset(
        path=tmp_path / "train.jsonl", text="a", other="b", tokenizer=tmp_path / "words", length=40
    )
    x = data.load(0).train.x

    assert isinstance(x, dict)
    expected = fast(["one", "one two"], ["two three", "three"], padding="max_length", max_length=40)
    assert {key: value.tolist() for key, value in x.items()} == {key: expected[key] for key in inputs}


def test_labels_that_are_values_make_it_regression(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 0.5}, {"text": "b", "label": 2.0}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))

    splits = HuggingFaceDataset(path=tmp_path, length=2).load(0)

    assert splits.task == "regression"
    assert splits.train.y.tolist() == [[0.5], [2.0]]


def test_what_a_table_lacks_is_said(tmp_path: Path) -> None:
    with pytest.raises(pk.DataError, match="does not exist; prunekit downloads nothing"):
        HuggingFaceDataset(path=tmp_path / "nowhere").load(0)
    with pytest.raises(pk.DataError, match="holds no training split"):
        HuggingFaceDataset(path=tmp_path).load(0)
    _write(tmp_path, "jsonl")
    with pytest.raises(pk.DataError, match="the train split has no column 'sentence'; it has text, label"):
        HuggingFaceDataset(path=tmp_path, text="sentence").load(0)
    (tmp_path / "train.jsonl").write_text("{")
    with pytest.raises(pk.DataError, match=r"train\.jsonl: cannot be read"):
        HuggingFaceDataset(path=tmp_path).load(0)


def _picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_pictures_are_cut_to_a_square_and_classes_are_their_folders(tmp_path: Path) -> None:
    _picture(tmp_path / "train" / "cat" / "1.png", (255, 0, 0))
    _picture(tmp_path / "train" / "dog" / "1.jpg", (0, 0, 255), (5, 9))
    _picture(tmp_path / "val" / "dog" / "2.png", (0, 255, 0))

    data = ImageFolder(path=tmp_path, size=4, mean=(0, 0, 0), std=(1, 1, 1), inputs="pixel_values")
    splits = data.load(0)

    assert isinstance(splits.train.x, dict)
    assert splits.train.x["pixel_values"].shape == (2, 3, 4, 4)
    np.testing.assert_allclose(splits.train.x["pixel_values"][0].mean((1, 2)), [1, 0, 0], atol=1e-6)
    assert splits.train.y.tolist() == [0, 1]
    assert splits.valid is not None
    assert splits.valid.y.tolist() == [1]
    assert splits.outputs == 2
    assert ImageFolder(path=tmp_path, size=4).load(0).train.x.shape == (2, 3, 4, 4)  # type: ignore[union-attr]


def test_folders_without_pictures_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(pk.DataError, match="has no folder train"):
        ImageFolder(path=tmp_path).load(0)
    _picture(tmp_path / "train" / "cat" / "1.png", (1, 2, 3))
    _picture(tmp_path / "test" / "cow" / "1.png", (1, 2, 3))
    with pytest.raises(pk.DataError, match="has classes that train does not have: cow"):
        ImageFolder(path=tmp_path).load(0)
    (tmp_path / "train" / "cat" / "2.png").write_bytes(b"no picture")
    with pytest.raises(pk.DataError, match=r"2\.png: cannot be read"):
        ImageFolder(path=tmp_path).load(0)
