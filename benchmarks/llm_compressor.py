"""Prune a folder of transformers with llm-compressor, in an interpreter that has it: what `--peer` of the benchmarks runs.

    PYTHON benchmarks/llm_compressor.py MODEL WINDOWS OUT --criterion wanda sparsegpt --sparsity 0.5 0.6

WINDOWS is a safetensors file with `input_ids`, OUT a folder that gets one of the network for each criterion and level,
named like `wanda-0.5`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

BATCH = 32


def tokenizer():
    """The byte-wise network needs none, but `oneshot` asks for a processor."""
    import tokenizers
    import transformers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="a")


def prune(model, ids, criterion: str, sparsity: float, batch: int = BATCH) -> None:
    """In place."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    from torch.utils.data import DataLoader
    from transformers import default_data_collator

    modifier = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[criterion]
    rows = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": [[1] * ids.shape[1]] * len(ids)})
    oneshot(
        model=model,
        processor=tokenizer(),
        dataset=DataLoader(rows, batch_size=batch, collate_fn=default_data_collator),
        recipe=modifier(
            sparsity=sparsity,
            mask_structure="0:0",
            targets=["Linear"],
            # A plain "lm_head" does not match: the name that is looked up ends in a dot, and a tied embedding is pruned too.
            ignore=["re:.*lm_head"],
        ),
        max_seq_length=ids.shape[1],
        num_calibration_samples=len(ids),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("windows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--criterion", nargs="+", default=["wanda", "sparsegpt"])
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.5, 0.6, 0.7])
    args = parser.parse_args()
    import torch
    import transformers
    from safetensors.torch import load_file

    ids = load_file(args.windows)["input_ids"]
    for criterion in args.criterion:
        for sparsity in args.sparsity:
            model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
            model.config.use_cache = False
            prune(model.eval(), ids, criterion, sparsity)
            model.save_pretrained(args.out / f"{criterion}-{sparsity:g}", save_compressed=False)


if __name__ == "__main__":
    main()
