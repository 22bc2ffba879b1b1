"""How large the gradient is: of the weights that are left, and of those that are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from prunekit import Options, Probe, ProbeRecord, Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Generator

    from prunekit import Moment
    from prunekit.results import Results


class GradientOptions(Options):
    """Options.

    Attributes:
        examples: Number of training examples, from the first; null = all.
    """

    examples: int | None = Field(default=1000, ge=1)


class Gradient(Probe):
    """‖∂L/∂θ‖₂ over the prunable weights, apart for those that are kept and those that are pruned, also by layer.

    A gradient that is small after pruning is what fine-tuning starts from; that of pruned weights says how much the loss
    would change at first if they came back.
    """

    name = "gradient"
    moments = ("dense", "pruned", "finetuned")
    headline = ("kept", "pruned")
    Options = GradientOptions
    options: GradientOptions

    def measure(self, moment: Moment, generator: Generator) -> ProbeRecord:
        """Measure on training examples, in eval mode."""
        gradient, masks = moment.gradient(data=moment.split("train", self.options.examples)), moment.masks()
        norms: dict[str, list[float]] = {"kept": [], "pruned": []}
        for name, mask in masks.items():
            squares = gradient[name].double().square()
            norms["kept"].append(float(squares[mask].sum().sqrt()))
            norms["pruned"].append(float(squares[~mask].sum().sqrt()))
        whole = {key: sum(v * v for v in values) ** 0.5 for key, values in norms.items()}
        layers = {key: Series(values, ("layer",), "loss") for key, values in norms.items()}
        network = {key: Series(value, (), "loss") for key, value in whole.items()}
        return ProbeRecord({"layers": layers, "network": network}, {**whole, "layers": list(masks)})

    @classmethod
    def draw(cls, results: Results, label: str, figure: Figure) -> None:
        """A panel for each moment, two bars for each layer."""
        from prunekit_plugins._landscape.gradient_figure import draw

        draw(results, label, figure)
