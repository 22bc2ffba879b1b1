"""Layer-wise pruning of a language model, block by block: CPU seconds and memory of each criterion, beside llm-compressor.

    python benchmarks/language_model.py                 # a Llama of 98 M random weights, one thread
    python benchmarks/language_model.py --criterion sparsegpt wanda alps --sparsity 0.6
    python benchmarks/language_model.py --peer PYTHON   # an interpreter with llmcompressor installed

Each row is a process of its own. Seconds are those of the processor, all threads together, for pruning alone; memory is the
peak resident set less what it was with the network and the examples loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

HIDDEN, INTERMEDIATE, BLOCKS, VOCABULARY = 768, 2048, 12, 8192
CRITERIA = {
    "magnitude": {"name": "magnitude"},
    "wanda": {"name": "wanda"},
    "sparsegpt": {"name": "sparsegpt"},
    "sparsegpt_cg": {"name": "sparsegpt", "refit": "cg"},
    "alps": {"name": "alps"},
    "obc": {"name": "obc"},
    "obs_kfac": {"name": "obs_kfac", "curvature": "ggn_mc", "selection": "saliency", "damping": 1e-3},
}


def network(args: argparse.Namespace):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=args.blocks,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return LlamaForCausalLM(config).eval()


def examples(args: argparse.Namespace):
    """Tokens in a random but not uniform order, so that activations are correlated."""
    import torch

    torch.manual_seed(1)
    steps = torch.randint(-3, 4, (args.tokens // args.length, args.length))
    ids = (torch.randint(VOCABULARY, (len(steps), 1)) + steps.cumsum(1)) % VOCABULARY
    return [{"input_ids": part, "labels": part} for part in ids.split(args.batch)]


def resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def mean_loss(model, batches) -> float:
    import torch

    with torch.no_grad():
        return sum(float(model(**batch).loss) for batch in batches) / len(batches)


def by_peer(args: argparse.Namespace, model, batches) -> None:
    """The same with llm-compressor, which this interpreter has; it reads networks from folders only."""
    import llm_compressor
    import llmcompressor  # noqa: F401  what the import costs is no part of it
    import torch
    from transformers import LlamaForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        model = LlamaForCausalLM.from_pretrained(folder).eval()
        model.config.use_cache = False
        ids = torch.cat([batch["input_ids"] for batch in batches])
        dense = mean_loss(model, batches)
        before, started, clock = resident(), time.process_time(), time.perf_counter()
        llm_compressor.prune(model, ids, args.one, args.sparsity, args.batch)
        row = {
            "cpu": time.process_time() - started,
            "wall": time.perf_counter() - clock,
            "gib": resident() - before,
            "delta_loss": mean_loss(model, batches) - dense,
        }
    print(json.dumps(row))


def one(args: argparse.Namespace) -> None:
    """Prune with one criterion, and print what it cost."""
    import torch

    torch.set_num_threads(args.threads)
    model, batches = network(args), examples(args)
    with torch.no_grad():
        model(input_ids=batches[0]["input_ids"][:1])  # what torch sets up once is no part of it
    if args.by_peer:
        by_peer(args, model, batches)
        return
    import prunekit as pk

    before, started, clock = resident(), time.process_time(), time.perf_counter()
    pruning = pk.prune(
        model,
        batches,
        CRITERIA[args.one],
        sparsity=args.sparsity,
        steps=1,
        selector="layerwise" if args.one == "magnitude" else "global",
        loss="causal_lm",
        prunable={"preset": "transformer_blocks"},
        blocks={
            "blocks": "model.layers.*",
            "inputs": "dense" if args.one == "obs_kfac" else "pruned",
            "offload": args.offload,
        },
        memory=args.memory << 20,
    )
    row = {
        "cpu": time.process_time() - started,
        "wall": time.perf_counter() - clock,
        "gib": resident() - before,
        "delta_loss": pruning.steps[-1].delta_loss,
        "sparsity": pruning.sparsity,
    }
    print(json.dumps(row))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--criterion", nargs="*", default=["magnitude", "wanda", "sparsegpt", "sparsegpt_cg", "alps"]
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--by-peer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=int, default=256, help="MiB for activations and products")
    parser.add_argument("--offload", default="none")
    parser.add_argument("--peer", help="a Python interpreter with llmcompressor")
    args = parser.parse_args()
    if args.one:
        one(args)
        return
    print(f"{'criterion':18} {'CPU s':>8} {'wall s':>8} {'GiB more':>9} {'loss change':>12}")
    rows = [(name, [sys.executable, __file__, "--one", name]) for name in args.criterion]
    if args.peer:
        rows += [
            (f"their {name}", [args.peer, __file__, "--one", name, "--by-peer"])
            for name in ("wanda", "sparsegpt")
        ]
    for name, command in rows:
        for key in ("sparsity", "tokens", "length", "batch", "blocks", "threads", "memory", "offload"):
            command += [f"--{key}", str(getattr(args, key))]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(args.threads),
            "MKL_NUM_THREADS": str(args.threads),
        }
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            print(f"{name:18} {done.stderr.strip().splitlines()[-1][:100]}")
            continue
        row = json.loads(done.stdout.strip().splitlines()[-1])
        print(
            f"{name:18} {row['cpu']:8.1f} {row['wall']:8.1f} {row['gib']:9.2f} {row['delta_loss']:12.5f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
