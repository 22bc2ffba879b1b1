"""The spectrum of a curvature matrix: its ends, its density, its trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from prunekit import Options, Probe, ProbeRecord, Series
from prunekit_plugins._landscape.examples import measured_on

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from torch import Generator

    from prunekit import Moment, Split
    from prunekit.results import Results
    from prunekit_plugins._landscape.spectrum import OverKept


class DensityOptions(Options):
    """The density by stochastic Lanczos quadrature.

    Attributes:
        vectors: Maximum number of vectors of random signs.
        iterations: Products with the matrix for each vector.
        tolerance: Vectors are drawn until the trace's standard error is this fraction of the sum of the eigenvalues'
            sizes; 0 for all of them.
        points: Number of places at which the density is given.
    """

    vectors: int = Field(default=10, ge=1, le=10_000)
    iterations: int = Field(default=50, ge=1, le=10_000)
    tolerance: float = Field(default=0.02, ge=0)
    points: int = Field(default=401, ge=50, le=1_000_000)


class SpectrumOptions(Options):
    """Options.

    Attributes:
        operator: ``hessian`` of the loss, or ``ggn``, the generalised Gauss-Newton matrix.
        eigenvalues: Number of the largest eigenvalues.
        smallest: Number of the smallest eigenvalues.
        iterations: Maximum number of products with the matrix for these, as long as none occurs several times.
        tolerance: Residual at which an eigenvalue counts as found, as a fraction of the largest one's size.
        density: Density of the whole spectrum, and the trace; null = none.
        per_layer: Also the ends and the trace of each prunable tensor's own block.
        examples: Number of training examples, from the first; null = all. At a step, its own examples count.
    """

    operator: Literal["hessian", "ggn"] = "hessian"
    eigenvalues: int = Field(default=3, ge=0, le=10_000)
    smallest: int = Field(default=1, ge=0, le=10_000)
    iterations: int = Field(default=100, ge=1, le=100_000)
    tolerance: float = Field(default=1e-4, gt=0)
    density: DensityOptions | None = DensityOptions()
    per_layer: bool = False
    examples: int | None = Field(default=1000, ge=1)


class Spectrum(Probe):
    """Eigenvalues, density and trace of the Hessian or the GGN over the weights that are kept.

    The ends by Lanczos with full reorthogonalisation, each value with its residual ‖Av − λv‖, within which an eigenvalue
    lies; equal ones are counted as often as they occur. The density by stochastic Lanczos quadrature with Gaussians, its
    standard error that over the random vectors. References: Ghorbani, Krishnan & Xiao (2019); Ubaru, Chen & Saad (2017).
    """

    name = "spectrum"
    headline = ("eigenvalues", "smallest", "trace")
    Options = SpectrumOptions
    options: SpectrumOptions

    def measure(self, moment: Moment, generator: Generator) -> ProbeRecord:
        """Measure at the weights now."""
        data = measured_on(moment, self.options.examples)
        groups, summary = self._spectrum(moment, data, None, generator)
        if self.options.per_layer:
            groups["layers"], summary["layers"] = self._layers(moment, data, generator)
        attributes = {"operator": self.options.operator}
        return ProbeRecord(groups, {**attributes, **summary}, attributes=attributes)

    @classmethod
    def draw(cls, results: Results, label: str, figure: Figure) -> None:
        """The density, with the ends marked."""
        from prunekit_plugins._landscape.spectrum_figure import draw

        draw(results, label, figure)

    def _spectrum(
        self, moment: Moment, data: Split | None, layer: str | None, generator: Generator
    ) -> tuple[dict[str, dict[str, Series]], dict[str, object]]:
        """Ends and, if asked for, density, of all or of a layer's block."""
        from prunekit_plugins._landscape.spectrum import over_kept

        matrix = over_kept(moment, self.options.operator, data, layer)
        with matrix.steady():
            groups, summary = self._ends(moment, matrix, generator)
            if self.options.density is not None:
                more, numbers = self._density(moment, matrix, self.options.density, generator)
                groups["spectrum"] |= more["spectrum"]
                groups["density"] = more["density"]
                summary |= numbers
        return groups, summary

    def _ends(
        self, moment: Moment, matrix: OverKept, generator: Generator
    ) -> tuple[dict[str, dict[str, Series]], dict[str, object]]:
        import numpy as np

        from prunekit_plugins._linalg.lanczos import extreme

        options, size = self.options, len(matrix.like)
        wanted = (min(options.eigenvalues, size), min(options.smallest, size))

        def ends() -> tuple[list[list[float]], int]:
            pairs = extreme(
                matrix.product, matrix.like, *wanted, options.iterations, options.tolerance, generator
            )
            return [n.tolist() for one in pairs for n in (one.values, one.residuals)], pairs[0].products

        numbers, products = moment.once(ends, generator)
        high, high_residuals, low, low_residuals = map(np.array, numbers)
        unit = "loss per squared weight"
        found = {
            "eigenvalues": Series(_padded(high, options.eigenvalues), ("largest",), unit),
            "residuals": Series(_padded(high_residuals, options.eigenvalues), ("largest",), unit),
            "smallest": Series(_padded(low, options.smallest), ("smallest",), unit),
            "smallest_residuals": Series(_padded(low_residuals, options.smallest), ("smallest",), unit),
        }
        summary = {key: _plain(series.values) for key, series in found.items()}
        return {"spectrum": found}, {"size": size, **summary, "products": products}

    def _density(
        self, moment: Moment, matrix: OverKept, options: DensityOptions, generator: Generator
    ) -> tuple[dict[str, dict[str, Series]], dict[str, object]]:
        import numpy as np

        from prunekit_plugins._landscape.spectrum import density

        found = density(
            *(matrix.product, matrix.like, options.iterations, options.vectors, options.tolerance),
            *(generator, moment.once),
        )
        trace, error = found.trace()
        values, heights, errors = found.smooth(options.points)
        whole = np.full((2, options.vectors, options.iterations), np.nan)  # of one shape at every step
        for place, part in enumerate((found.nodes, found.weights)):
            whole[place, : part.shape[0], : part.shape[1]] = part
        unit = "loss per squared weight"
        groups = {
            "spectrum": {"trace": Series(trace, (), unit), "trace_error": Series(error, (), unit)},
            "density": {
                "value": Series(values, ("point",), unit),
                "density": Series(heights, ("point",), f"1 / ({unit})"),
                "density_error": Series(errors, ("point",), f"1 / ({unit})"),
                "node": Series(whole[0], ("vector", "node"), unit),
                "weight": Series(whole[1], ("vector", "node"), ""),
            },
        }
        return groups, {"trace": trace, "trace_error": _number(error), "vectors": len(found.nodes)}

    def _layers(
        self, moment: Moment, data: Split | None, generator: Generator
    ) -> tuple[dict[str, Series], dict[str, object]]:
        import numpy as np

        rows: dict[str, list[np.ndarray]] = {}
        summary: dict[str, object] = {}
        units: dict[str, Series] = {}
        for name in moment.prunable:
            groups, numbers = self._spectrum(moment, data, name, generator)
            found = groups["spectrum"]
            numbers.pop("vectors", None)
            summary[name] = numbers
            for key, series in found.items():
                rows.setdefault(key, []).append(series.values)
                units[key] = series
        arrays = {
            key: Series(
                np.stack([np.asarray(v) for v in values]), ("layer", *units[key].axes), units[key].units
            )
            for key, values in rows.items()
        }
        return arrays, summary


def _padded(values: np.ndarray, size: int) -> np.ndarray:
    import numpy as np

    return np.concatenate([values, np.full(size - len(values), np.nan)])


def _plain(values: Sequence[float]) -> list[float]:
    return [float(value) for value in values if value == value]


def _number(value: float) -> float | None:
    return value if value == value else None
