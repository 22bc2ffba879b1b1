"""What layer-wise criteria cost on trained language models: held-out loss of two small Llamas of bytes, over seeds.

    python benchmarks/trained_language_models.py                   # trains into a temporary folder first
    python benchmarks/trained_language_models.py --folder llamas   # or keeps and reuses the trained networks

Python's own help pages are the text. Each network is pruned block by block from 128 windows of 128 bytes of its training
text; the columns are how much its loss on the test text grows, in nats a byte: mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "llama_bytes"))

SIZES = {"small": (96, 256, 3), "larger": (160, 416, 4)}
LEVELS = 0.5, 0.6, 0.7
CRITERIA = {
    "magnitude": ({"name": "magnitude"}, {"selector": "layerwise"}),
    "magnitude, update: cg": ({"name": "magnitude", "update": "cg"}, {"selector": "layerwise"}),
    "wanda": ({"name": "wanda"}, {}),
    "wanda, update: cg": ({"name": "wanda", "update": "cg"}, {}),
    "wanda, swaps: 1000": ({"name": "wanda", "swaps": 1000}, {}),
    "wanda, swaps: 1000, update: cg": ({"name": "wanda", "swaps": 1000, "update": "cg"}, {}),
    "sparsegpt": ({"name": "sparsegpt"}, {}),
    "sparsegpt, refit: cg": ({"name": "sparsegpt", "refit": "cg"}, {}),
    "alps": ({"name": "alps"}, {}),
    "obc": ({"name": "obc"}, {}),
    "obs_kfac, 4 steps": (
        {"name": "obs_kfac", "curvature": "ggn_mc", "selection": "saliency", "damping": 1e-3},
        {"steps": 4, "inputs": "dense"},
    ),
}


def trained(folder: Path, size: str, seed: int, steps: int):
    """A network and its texts, trained unless it is there."""
    import torch
    import train
    import transformers

    home = folder / f"{size}-{seed}"
    home.mkdir(parents=True, exist_ok=True)
    data = train.texts(home)
    if not (home / "model").is_dir():
        torch.manual_seed(seed)
        hidden, intermediate, blocks = SIZES[size]
        config = train.network().config
        config.hidden_size, config.intermediate_size, config.num_hidden_layers = hidden, intermediate, blocks
        config.head_dim = hidden // config.num_attention_heads
        model = transformers.LlamaForCausalLM(config)
        train.train(model, data, steps)
        model.save_pretrained(home / "model")
    model = transformers.LlamaForCausalLM.from_pretrained(home / "model").eval()
    test = torch.tensor(list((home / "test.txt").read_bytes()))
    return model, data, test


def windows(data, count: int, seed: int):
    import torch

    starts = torch.randint(len(data) - 128, (count, 1), generator=torch.Generator().manual_seed(seed))
    ids = data[starts + torch.arange(128)]
    return [{"input_ids": part, "labels": part} for part in ids.split(32)]


def loss(model, batches) -> float:
    import torch

    with torch.no_grad():
        losses = [float(model(input_ids=b["input_ids"], labels=b["labels"]).loss) for b in batches]
    return statistics.fmean(losses)


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} ± {deviation:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--steps", type=int, default=600, help="of training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp())
    warnings.simplefilter("ignore")
    import prunekit as pk

    for size in args.sizes:
        rises: dict[tuple[str, float], list[float]] = {}
        seconds: dict[str, float] = {}
        dense = []
        for seed in range(args.seeds):
            model, data, test = trained(folder, size, seed, args.steps)
            calibration, held_out = windows(data, 128, seed), windows(test, 256, 1000)
            dense.append(loss(model, held_out))
            for name, (criterion, options) in CRITERIA.items():
                given = dict(options)
                blocks = {"blocks": "model.layers.*", "inputs": given.pop("inputs", "pruned")}
                for level in LEVELS:
                    pruned = copy.deepcopy(model)
                    began = time.perf_counter()
                    pk.prune(
                        pruned,
                        calibration,
                        criterion,
                        sparsity=level,
                        **{"steps": 1, **given},
                        prunable={"preset": "transformer_blocks"},
                        blocks=blocks,
                        memory=2 << 30,
                    )
                    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
                    rises.setdefault((name, level), []).append(loss(pruned, held_out) - dense[-1])
        weights = sum(p.numel() for n, p in model.named_parameters() if "_proj" in n)
        print(
            f"\n{size}: {weights / 1e6:.2f} M weights, {statistics.fmean(dense):.3f} nats a byte held out\n"
        )
        print("| criterion |" + "".join(f" {100 * level:.0f} % |" for level in LEVELS) + " seconds |")
        print("|---|" + "---:|" * (len(LEVELS) + 1))
        for name in CRITERIA:
            cells = [f" {spread(rises[name, level])} |" for level in LEVELS]
            print(
                f"| {name} |{''.join(cells)} {seconds[name] / (args.seeds * len(LEVELS)):.1f} |", flush=True
            )


if __name__ == "__main__":
    main()
