"""A folder of pictures and a small vision transformer without training: what examples/vit_folder/run.yaml starts from.

python examples/vit_folder/make.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_digits


def pictures(folder: Path) -> None:
    """scikit-learn's digits as PNG files, a folder for each split and class."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    for number, i in enumerate(order):
        split = "test" if number % 5 == 0 else "valid" if number % 5 == 1 else "train"
        place = folder / split / str(digits.target[i])
        place.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[i] * 255 / 16).astype(np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(place / f"{i:04}.png")


def network() -> transformers.ViTForImageClassification:
    config = transformers.ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_labels=10,
    )
    return transformers.ViTForImageClassification(config)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "vit_folder")
    torch.manual_seed(0)
    pictures(folder / "pictures")
    network().save_pretrained(folder / "model")
    print(f"pictures and model in {folder}")


if __name__ == "__main__":
    main()
