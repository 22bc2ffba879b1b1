"""One layer with correlated inputs of random weights: what layer-wise criteria lose at its outputs, and how long they take.

    python benchmarks/one_layer.py --inputs 768 2048 --sparsity 0.5 0.6

The error is ``Σ (Wx − Ŵx)²`` as thousandths of ``Σ (Wx)²``, on the examples that the criterion has seen and on as many
others; seconds are the processor's, of one thread, the moments of the inputs included.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

import prunekit as pk

CRITERIA: dict[str, dict[str, object]] = {
    "wanda": {"name": "wanda"},
    "wanda, swaps: 10": {"name": "wanda", "swaps": 10},
    "wanda, swaps: 1000": {"name": "wanda", "swaps": 1000},
    "wanda, update: cg": {"name": "wanda", "update": "cg"},
    "wanda, swaps: 1000, update: cg": {"name": "wanda", "swaps": 1000, "update": "cg"},
    "sparsegpt, refit: cg": {"name": "sparsegpt", "refit": "cg"},
    "alps": {"name": "alps"},
}


def inputs(count: int, examples: int) -> tuple[Tensor, Tensor]:
    """Some to prune on and as many others: mixtures of as many sources, of which the first are twenty times the last."""
    torch.manual_seed(count)
    mix = torch.randn(count, count) * torch.linspace(1, 0.05, count)[:, None] / count**0.5
    return torch.randn(examples, count) @ mix, torch.randn(examples, count) @ mix


def lost(weight: Tensor, layer: nn.Linear, x: Tensor) -> float:
    whole = x @ weight.T
    return 1000 * float((layer(x) - whole).square().sum() / whole.square().sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, nargs="*", default=[768])
    parser.add_argument("--outputs", type=int, default=768)
    parser.add_argument("--examples", type=int, default=2048)
    parser.add_argument("--sparsity", type=float, nargs="*", default=[0.5, 0.6])
    parser.add_argument("--criterion", nargs="*", default=list(CRITERIA), choices=list(CRITERIA))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for count in chosen.inputs:
        seen, other = inputs(count, chosen.examples)
        dense = nn.Linear(count, chosen.outputs, bias=False)
        nn.init.normal_(dense.weight)
        weight = dense.weight.detach().clone()
        for sparsity in chosen.sparsity:
            print(f"\n{count} inputs, {sparsity:.0%}\n")
            print(f"{'criterion':32}{'calibration':>12}{'held out':>10}{'seconds':>9}")
            for name in chosen.criterion:
                with torch.no_grad():
                    dense.weight.copy_(weight)
                batches = [(x, torch.zeros(len(x), chosen.outputs)) for x in seen.split(256)]
                start = time.process_time()
                pk.prune(
                    dense, batches, CRITERIA[name], sparsity=sparsity, steps=1, loss="mse", memory=4 << 30
                )
                seconds = time.process_time() - start
                with torch.no_grad():
                    errors = [lost(weight, dense, x) for x in (seen, other)]
                print(f"{name:32}{errors[0]:12.1f}{errors[1]:10.1f}{seconds:9.1f}", flush=True)


if __name__ == "__main__":
    main()
