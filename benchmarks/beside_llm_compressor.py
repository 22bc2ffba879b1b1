"""Our Wanda and SparseGPT beside llm-compressor's, on one network from the same windows: masks and held-out loss.

`trained_language_models.py --tables peer --peer PYTHON` uses it. In both, a block's layers see what they saw before any of
them was pruned, and the next block what the pruned ones give; SparseGPT's damping is a hundredth of the mean diagonal, its
runs have 128 columns. Only the numbers that go differ: ours are exact over the whole network, llm-compressor rounds down in
each row (Wanda), or in each run of columns, and takes one more (SparseGPT: the threshold goes too). Rows called "their
numbers" give ours the same.
"""

from __future__ import annotations

import copy
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

LEVELS = 0.5, 0.6, 0.625, 0.7  # five in eight divides the rows of both sizes
CRITERIA = {"wanda": {}, "sparsegpt": {"relative_damping": 0.01, "block_size": 128}}
HEADER = (
    "| criterion | asked | zeros of ours | of theirs | masks alike | our loss | theirs |\n"
    + "|---|"
    + "---:|" * 6
)


def peers(python: str, home: Path, batches) -> Path:
    """A folder with llm-compressor's networks; what it prints is shown only where it fails."""
    import torch
    from safetensors.torch import save_file

    folder = home / "llm_compressor"
    folder.mkdir(exist_ok=True)
    windows = folder / "windows.safetensors"
    save_file({"input_ids": torch.cat([b["input_ids"] for b in batches])}, windows)
    script = Path(__file__).with_name("llm_compressor.py")
    command = [python, str(script), str(home / "model"), str(windows), str(folder)]
    command += ["--sparsity", *(f"{level:g}" for level in LEVELS)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    if done.returncode:
        raise SystemExit(f"{python}: {done.stderr.strip().splitlines()[-1]}")
    return folder


def same_numbers(name: str, level: float):
    """Our criterion with llm-compressor's numbers for each layer."""
    from prunekit_plugins import criteria

    ours = {"wanda": criteria.wanda.Wanda, "sparsegpt": criteria.sparsegpt.SparseGPT}[name]

    class Theirs(ours):
        def shares(self, layers, gone, budget):
            return [theirs(name, level, layer.shape) for layer in layers]

    return Theirs(**CRITERIA[name])


def theirs(name: str, level: float, shape) -> int:
    """How many weights of a layer llm-compressor prunes if no scores repeat."""
    rows, columns = shape
    if name == "wanda":
        return rows * int(columns * level)
    runs = [min(128, columns - start) for start in range(0, columns, 128)]
    return sum(int(rows * run * level) + 1 for run in runs)


def compare(model, batches, folder: Path, loss: Callable[[object], float], prune: Callable[..., None]):
    """For each criterion, level and kind of numbers: zeros of ours, of theirs, share of masks alike, both losses."""
    import transformers

    found = {}
    weights = [p for n, p in model.named_parameters() if "_proj" in n]
    total = sum(p.numel() for p in weights)
    for name, options in CRITERIA.items():
        for level in LEVELS:
            peer = transformers.LlamaForCausalLM.from_pretrained(folder / f"{name}-{level:g}").eval()
            given = sum(theirs(name, level, p.shape) for p in weights)
            both = {
                "": ({"name": name, **options}, level),
                ", their numbers": (same_numbers(name, level), given / total),
            }
            for kind, (criterion, sparsity) in both.items():
                ours = copy.deepcopy(model)
                prune(ours, batches, criterion, sparsity)
                found[f"{name}{kind}", level] = (*masks(ours, peer), loss(ours), loss(peer))
    return found


def masks(ours, peer) -> tuple[float, float, float]:
    """Zeros of both, and the share of masks alike; what is not to be pruned has to be as it was."""
    import torch

    others, total, alike, zeros = dict(peer.named_parameters()), 0, 0, [0, 0]
    for name, p in ours.named_parameters():
        q = others[name]
        if "_proj" not in name:
            if not torch.equal(p, q):
                raise SystemExit(f"{name} has been changed")
            continue
        total += p.numel()
        alike += int(((p == 0) == (q == 0)).sum())
        zeros = [zeros[0] + int((p == 0).sum()), zeros[1] + int((q == 0).sum())]
    return zeros[0] / total, zeros[1] / total, alike / total
