"""What layer-wise criteria cost on trained language models: held-out loss of two small Llamas of bytes, over seeds.

    python benchmarks/trained_language_models.py                   # trains into a temporary folder first
    python benchmarks/trained_language_models.py --folder llamas   # or keeps and reuses the trained networks
    python benchmarks/trained_language_models.py --tables ridges   # damping where there are few windows
    python benchmarks/trained_language_models.py --tables peer --peer PYTHON   # an interpreter with llmcompressor

Python's own help pages are the text. Each network is pruned block by block from 128 windows of 128 bytes of its training
text; the columns are how much its loss on the test text grows, in nats a byte: mean and standard deviation over seeds.
Seconds are those of the processor.
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

import beside_llm_compressor as beside

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
RIDGES = 0.01, 0.1
WINDOWS = 8, 32, 128


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


def pruned(model, batches, criterion, sparsity: float, inputs: str = "pruned", **options) -> float:
    """Prune in place; processor seconds."""
    import prunekit as pk

    began = time.process_time()
    pk.prune(
        model,
        batches,
        criterion,
        sparsity=sparsity,
        **{"steps": 1, **options},
        prunable={"preset": "transformer_blocks"},
        blocks={"blocks": "model.layers.*", "inputs": inputs},
        memory=2 << 30,
    )
    return time.process_time() - began


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} ± {deviation:.3f}"


def by_criterion(networks) -> None:
    """All criteria at all levels."""
    rises: dict[tuple[str, float], list[float]] = {}
    seconds: dict[str, float] = {}
    for seed, (model, data, held_out, dense) in enumerate(networks):
        for name, (criterion, options) in CRITERIA.items():
            for level in LEVELS:
                ours = copy.deepcopy(model)
                spent = pruned(ours, windows(data, 128, seed), criterion, level, **options)
                seconds[name] = seconds.get(name, 0.0) + spent
                rises.setdefault((name, level), []).append(loss(ours, held_out) - dense)
                print(
                    f"{name} {level} {rises[name, level][-1]:.4f} {spent:.1f} s", file=sys.stderr, flush=True
                )
    print("| criterion |" + "".join(f" {100 * level:.0f} % |" for level in LEVELS) + " seconds |")
    print("|---|" + "---:|" * (len(LEVELS) + 1))
    for name in CRITERIA:
        cells = [f" {spread(rises[name, level])} |" for level in LEVELS]
        print(f"| {name} |{''.join(cells)} {seconds[name] / (len(networks) * len(LEVELS)):.1f} |", flush=True)


def by_ridge(networks) -> None:
    """More damping and less, from few windows and from many."""
    print("| criterion | windows | `relative_damping` |" + "".join(f" {100 * x:.0f} % |" for x in LEVELS))
    print("|---|" + "---:|" * (len(LEVELS) + 2))
    for name in ("sparsegpt", "alps"):
        for count in WINDOWS:
            for ridge in RIDGES:
                rises: dict[float, list[float]] = {level: [] for level in LEVELS}
                for seed, (model, data, held_out, dense) in enumerate(networks):
                    for level in LEVELS:
                        ours, criterion = copy.deepcopy(model), {"name": name, "relative_damping": ridge}
                        pruned(ours, windows(data, count, seed), criterion, level)
                        rises[level].append(loss(ours, held_out) - dense)
                cells = "".join(f" {spread(rises[level])} |" for level in LEVELS)
                print(f"| {name} | {count} | {ridge} |{cells}", flush=True)


def by_library(networks, folders: list[Path], python: str) -> None:
    """The same procedures in llm-compressor."""
    rows: dict[tuple[str, float], list[tuple[float, ...]]] = {}
    for seed, ((model, data, held_out, dense), home) in enumerate(zip(networks, folders, strict=True)):
        batches = windows(data, 128, seed)
        there = beside.peers(python, home, batches)

        def rise(network, held_out=held_out, dense=dense) -> float:
            return loss(network, held_out) - dense

        for key, row in beside.compare(model, batches, there, rise, pruned).items():
            rows.setdefault(key, []).append(row)
    print(beside.HEADER)
    for (name, level), found in rows.items():
        ours, theirs, alike, our_rises, their_rises = (list(values) for values in zip(*found, strict=True))
        shares = [f"{100 * statistics.fmean(values):.2f} %" for values in (ours, theirs)]
        cells = [*shares, f"{100 * statistics.fmean(alike):.3f} %", spread(our_rises), spread(their_rises)]
        print(f"| {name} | {100 * level:g} % | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--steps", type=int, default=600, help="of training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--tables", nargs="*", default=["criteria"], choices=["criteria", "ridges", "peer"])
    parser.add_argument("--peer", help="a Python interpreter with llmcompressor, for the table of that name")
    args = parser.parse_args()
    if ("peer" in args.tables) != bool(args.peer):
        parser.error("--tables peer and --peer PYTHON go together")
    folder = args.folder or Path(tempfile.mkdtemp())
    warnings.simplefilter("ignore")

    for size in args.sizes:
        networks = []
        for seed in range(args.seeds):
            model, data, test = trained(folder, size, seed, args.steps)
            held_out = windows(test, 256, 1000)
            networks.append((model, data, held_out, loss(model, held_out)))
        weights = sum(p.numel() for n, p in model.named_parameters() if "_proj" in n)
        dense = spread([network[3] for network in networks])
        print(f"\n{size}: {weights / 1e6:.2f} M weights, {dense} nats a byte held out")
        for table in args.tables:
            print()
            if table == "criteria":
                by_criterion(networks)
            elif table == "ridges":
                by_ridge(networks)
            else:
                by_library(networks, [folder / f"{size}-{seed}" for seed in range(args.seeds)], args.peer)


if __name__ == "__main__":
    main()
