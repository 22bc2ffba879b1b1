"""Train a small language model of bytes on the text that Python ships, and leave it as a folder of transformers.

python examples/llama_bytes/train.py [FOLDER] [--steps N]
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import time
from pathlib import Path

import torch
import transformers

WINDOW, BATCH = 128, 32


def texts(folder: Path) -> torch.Tensor:
    """Python's own help pages, a tenth for validation and a tenth for a test; the training bytes are returned."""
    whole = "\n".join(pydoc_data.topics.topics.values())
    first, second = int(0.8 * len(whole)), int(0.9 * len(whole))
    parts = {"train": whole[:first], "valid": whole[first:second], "test": whole[second:]}
    for name, part in parts.items():
        (folder / f"{name}.txt").write_text(part, encoding="utf-8")
    return torch.tensor(list(parts["train"].encode()))


def network() -> transformers.LlamaForCausalLM:
    """0.36 million weights, 0.33 of them prunable; the head is the embedding."""
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


def train(model: transformers.LlamaForCausalLM, data: torch.Tensor, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    began = time.monotonic()
    for step in range(1, steps + 1):
        starts = torch.randint(len(data) - WINDOW, (BATCH, 1))
        tokens = data[starts + torch.arange(WINDOW)]
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            print(
                f"step {step}/{steps}  loss {loss:.3f} nats a byte  {time.monotonic() - began:.0f} s",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("llama_bytes"))
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    data, model = texts(arguments.folder), network()
    train(model, data, arguments.steps)
    model.save_pretrained(arguments.folder / "model")
    print(f"model and text in {arguments.folder}")


if __name__ == "__main__":
    main()
