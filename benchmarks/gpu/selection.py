"""Choosing the smallest scores exactly."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from figures import Figure, seconds, tell

from prunekit.masks import prune_smallest


def selection(device: torch.device) -> Iterator[Figure]:
    """Prune 90 % of 10⁷ and of 10⁸ float32 scores."""
    gpu = device.type == "cuda"
    for size in (10**7, 10**8) if gpu else (10**6,):
        torch.manual_seed(0)
        scores = torch.randn(size, device=device).abs_()
        masks = {"w": torch.ones(size, dtype=torch.bool, device=device)}
        budget = round(0.9 * size)

        def own(
            scores: torch.Tensor = scores, masks: dict[str, torch.Tensor] = masks, budget: int = budget
        ) -> torch.Tensor:
            return prune_smallest({"w": scores}, masks, budget)["w"]

        def peer(scores: torch.Tensor = scores, kept: int = size - budget) -> torch.Tensor:
            return torch.topk(scores, kept, sorted=False).values

        right = torch.equal(scores[own()].sort().values, peer().sort().values)
        taken = seconds(own, device)
        most = 5.0 if gpu and size == 10**7 else None
        yield Figure(f"{size:.0e} scores", 1e3 * taken, "ms", most=most, right=right)
        yield Figure(f"{size:.0e} scores: faster than topk", seconds(peer, device) / taken, "times")


if __name__ == "__main__":
    tell(selection)
