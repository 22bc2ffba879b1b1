"""The stability of a criterion: how its ranking and its masks change with the number and the draw of examples."""

from __future__ import annotations

from itertools import pairwise
from math import nan
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from prunekit import DataError, Options, Probe, ProbeRecord, RunError, Series, UnsupportedError
from prunekit_plugins._landscape.criteria import Spoken, labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from matplotlib.figure import Figure
    from torch import Generator, Tensor

    from prunekit import Moment, Split
    from prunekit.results import Results
    from prunekit_plugins._landscape.overlap import Agreement

CONFIDENCE = 0.95


class StabilityOptions(Options):
    """Options.

    Attributes:
        criterion: The criterion whose ranking is compared: a name, or a mapping with its options.
        sparsity: Sparsity of the masks: the fraction of the currently kept weights that goes.
        examples: Numbers of examples to try, increasing; those too large for two draws from the training split are left
            out.
        repeats: Disjoint draws of each number; fewer where the split does not hold so many.
        enough: The overlap from which a number of examples is enough.
        ranked: Number of weights whose ranks are compared, drawn at random where there are more.
    """

    criterion: Spoken = "qm"
    sparsity: float = Field(default=0.9, gt=0, lt=1)
    examples: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(10, 30, 100, 300, 1000), min_length=1)
    repeats: int = Field(default=8, ge=2, le=1000)
    enough: float = Field(default=0.9, gt=0, lt=1)
    ranked: int = Field(default=10_000, ge=2)

    @model_validator(mode="after")
    def _checked(self) -> Self:
        labels([self.criterion])
        sizes = self.examples
        if any(a >= b for a, b in pairwise(sizes)):
            raise ValueError(f"examples: must be numbers that increase; found {list(sizes)}")
        return self


class Stability(Probe):
    """Overlap of masks, and rank correlation of saliencies, between independent draws of examples.

    Each draw gives a mask of the same sparsity, cut by the saliency over all weights together. ``overlap`` is Jaccard's
    index of the weights kept, a mean over all pairs of draws; what two random masks would share stands beside it as
    ``chance``. Draws of one size hold no example twice, so intervals, by the jackknife over draws (Arvesen, 1969), are of
    fresh examples of the same source. ``enough`` is the number of examples from which the overlap reaches a target, from
    the sizes with three draws at least; infinite (in a summary null) where none of these is enough.
    """

    name = "stability"
    headline = ("enough.examples", "sizes.*.overlap.value")
    moments = "dense"
    Options = StabilityOptions
    options: StabilityOptions

    @property
    def criteria(self) -> Sequence[Spoken]:
        """The one."""
        return (self.options.criterion,)

    def measure(self, moment: Moment, generator: Generator) -> ProbeRecord:
        """Draw, rank and compare; where there is nothing to compare, ``reason`` says why.

        Raises:
            DataError: If there is no training split.
        """
        import numpy as np
        import torch

        from prunekit_plugins._landscape.overlap import Enough, enough, jaccard, jaccard_by_chance, over_pairs

        options, split = self.options, moment.split("train")
        if split is None:
            raise DataError(
                f"probe {self.name!r}: draws from the training split, but there is none; use it in a run, or with pk.probe"
            )
        kept = torch.cat([mask.flatten() for mask in moment.masks().values()])
        total = int(kept.count_nonzero())
        stay = total - round(options.sparsity * total)
        some = torch.randperm(total, generator=generator, device="cpu")[: options.ranked].to(kept.device)
        results: dict[str, list[Agreement]] = {"overlap": [], "pruned_overlap": [], "spearman": []}
        sizes = [size for size in options.examples if len(split) // size >= 2]
        reason = ""
        if not sizes:
            reason = (
                f"two draws of {options.examples[0]} examples do not fit into the training split's {len(split)}; ask for "
                f"fewer (examples: [{max(1, len(split) // 2)}])"
            )
        if total < 2:
            reason, sizes = f"only {total} of all weights is kept, which leaves nothing to rank", []
        moment.expects(sum(min(options.repeats, len(split) // size) for size in sizes))
        for size in tuple(sizes):
            try:
                masks, ranked = self._draws(moment, split, size, kept, total - stay, some, generator)
            except (UnsupportedError, RunError) as error:  # it has no saliency, or not a finite one
                reason, sizes = str(error), sizes[: sizes.index(size)]
                break
            results["overlap"].append(over_pairs(masks, jaccard, CONFIDENCE))
            results["pruned_overlap"].append(over_pairs([~mask for mask in masks], jaccard, CONFIDENCE))
            results["spearman"].append(over_pairs(ranked, _correlation, CONFIDENCE))
        draw = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator, device="cpu")))
        sure = [i for i, one in enumerate(results["overlap"]) if one.draws > 2] or range(len(sizes))
        tried, overlaps = [sizes[i] for i in sure], [results["overlap"][i] for i in sure]
        needed = enough(tried, overlaps, options.enough, draw, CONFIDENCE) if tried else Enough(nan, nan, nan)
        chance = {
            "overlap": jaccard_by_chance(total, stay),
            "pruned_overlap": jaccard_by_chance(total, total - stay),
        }
        rows = len(options.examples)
        arrays = {
            "examples": Series(_padded([float(size) for size in sizes], rows), ("size",), "examples"),
            "draws": Series(_padded([float(one.draws) for one in results["overlap"]], rows), ("size",)),
        }
        for key, found in results.items():
            for end, values in _columns(found).items():
                arrays[f"{key}{end}"] = Series(_padded(values, rows), ("size",))
        numbers = {f"chance_{key}": value for key, value in chance.items()} | {
            "enough": needed.size,
            "enough_low": needed.low,
            "enough_high": needed.high,
        }
        groups = {
            "sizes": arrays,
            "numbers": {
                key: Series(value, (), "examples" if "enough" in key else "")
                for key, value in numbers.items()
            },
        }
        summary: dict[str, Any] = {
            "criterion": labels([options.criterion])[0],
            "kept": total,
            "stay": stay,
            "chance": {key: _finite(value) for key, value in chance.items()},
            "enough": {
                "overlap": options.enough,
                "examples": _finite(needed.size),
                "low": _finite(needed.low),
                "high": _finite(needed.high),
                "largest": tried[-1] if tried else None,
            },
            "sizes": {
                str(size): {"draws": results["overlap"][i].draws}
                | {key: _said(found[i]) for key, found in results.items()}
                for i, size in enumerate(sizes)
            },
        }
        for key in ("overlap", "spearman"):  # of the largest draws
            summary[key] = _finite(results[key][-1].value) if sizes else None
        if reason:
            summary["reason"] = reason
        attributes = {"sparsity": options.sparsity, "target": options.enough, "confidence": CONFIDENCE}
        return ProbeRecord(groups, summary, attributes=attributes)

    @classmethod
    def draw(cls, results: Results, label: str, figure: Figure) -> None:
        """Overlap and rank correlation over the number of examples."""
        from prunekit_plugins._landscape.stability_figure import draw

        draw(results, label, figure)

    def _draws(
        self,
        moment: Moment,
        split: Split,
        size: int,
        kept: Tensor,
        go: int,
        some: Tensor,
        generator: Generator,
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Of each draw of a size, what stays among the weights that are kept now, and ranks of some of them."""
        import torch

        from prunekit.masks import smallest
        from prunekit.ranks import ranks

        order = torch.randperm(len(split), generator=generator, device="cpu")
        masks, ranked = [], []
        for start in range(0, size * min(self.options.repeats, len(split) // size), size):
            draw = split.take(order[start : start + size])

            def one(draw: Split = draw) -> tuple[Tensor, Tensor]:
                saliency = _flat(moment.saliency(self.options.criterion, generator, data=draw))[kept]
                return (~smallest(saliency, go)).cpu(), saliency[some].double().cpu()

            mask, values = moment.once(one, generator)
            masks.append(mask.numpy())
            ranked.append(ranks(values.numpy()))
        return masks, ranked


def _flat(tensors: Mapping[str, Tensor]) -> Tensor:
    import torch

    return torch.cat([t.detach().flatten() for t in tensors.values()])


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of two vectors of ranks; NaN where one is all alike."""
    import numpy as np

    one, other = one - one.mean(), other - other.mean()
    size = float(np.sqrt((one * one).sum() * (other * other).sum()))
    return float((one * other).sum()) / size if size else float("nan")


def _columns(found: Sequence[Agreement]) -> dict[str, list[float]]:
    return {
        "": [one.value for one in found],
        "_low": [one.low for one in found],
        "_high": [one.high for one in found],
    }


def _padded(values: list[float], rows: int) -> list[float]:
    """NaN for the sizes that were left out, which are the last."""
    return values + [float("nan")] * (rows - len(values))


def _said(one: Agreement) -> dict[str, float | None]:
    return {"value": _finite(one.value), "low": _finite(one.low), "high": _finite(one.high)}


def _finite(value: float) -> float | None:
    return value if value - value == 0 else None
