"""How numbers, labels and scales of matplotlib become plotly's."""

from __future__ import annotations

import html
import re
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axis import Axis

Made = dict[str, Any]
"""A part of a figure, as plotly has it."""

_MATH = {r"\Delta": "Δ", r"\lambda": "λ", r"\rho": "ρ", r"\tau": "τ", r"\theta": "θ", r"\mathcal{L}": "ℒ"}


def numbers(values: Any) -> Made:
    """An array as plotly reads it, 64 bits a number; NaN is a hole."""
    array: np.ndarray = np.ma.filled(np.ma.asarray(values, dtype="<f8"), np.nan)
    shape = {"shape": ", ".join(map(str, array.shape))} if array.ndim > 1 else {}
    return {"dtype": "f8", "bdata": b64encode(np.ascontiguousarray(array).tobytes()).decode(), **shape}


def text(label: str) -> str:
    """A label as plotly shows it, without what it or matplotlib would take for markup."""
    for sign, word in _MATH.items():
        label = label.replace(sign, word)
    parts = re.split(r"(?<!\\)\$", label)
    if len(parts) % 2:  # mathematics lies between two signs
        parts[1::2] = [re.sub(r"[{}]|\\math\w+", "", part) for part in parts[1::2]]
        label = "".join(parts)
    return html.escape(label.replace(r"\$", "$"), quote=False)


class Scale:
    """One axis: where numbers stand on it, and what plotly is told of it."""

    def __init__(self, axis: Axis, limits: tuple[float, float]) -> None:
        self.kind = axis.get_scale()
        self._axis, self._limits = axis, limits
        self._transform = None if self.kind in ("linear", "log") else axis.get_transform()

    def __call__(self, values: Any) -> np.ndarray:
        """Numbers as they are given to plotly, which knows no scale that is linear about zero and logarithmic beyond."""
        array: np.ndarray = np.ma.filled(np.ma.asarray(values, dtype=float), np.nan)
        return array if self._transform is None else np.asarray(self._transform.transform(array), dtype=float)

    def layout(self) -> Made:
        """Its title, range and ticks."""
        low, high = (float(v) for v in self(self._limits))
        if self.kind == "log":
            low, high = float(np.log10(self._limits[0])), float(np.log10(self._limits[1]))
        said: Made = {
            "title": {"text": text(self._axis.get_label_text())},
            "range": [low, high],
            "exponentformat": "power",
        }
        said |= {"type": "log", "dtick": 1} if self.kind == "log" else {}
        if self.kind == "log" and abs(high - low) < 1.5:
            said.pop("dtick")
        ticks = self._named()
        if ticks is not None:
            said |= {"tickmode": "array", "tickvals": ticks[0], "ticktext": ticks[1]}
        return said

    def _named(self) -> tuple[list[float], list[str]] | None:
        """Ticks that somebody has named, and those of scales that plotly does not have."""
        from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter

        places = [float(v) for v in self._axis.get_majorticklocs()]
        inside = [min(self._limits) <= v <= max(self._limits) for v in places]
        formatter = self._axis.get_major_formatter()
        if isinstance(self._axis.get_major_locator(), FixedLocator) and isinstance(
            formatter, FixedFormatter | FuncFormatter
        ):
            names = [text(label) for label in formatter.format_ticks(places)]
        elif self._transform is not None:
            names = [f"{v:g}" for v in places]
        else:
            return None
        at = [float(v) for v in self(places)]
        kept = [(a, n) for a, n, here in zip(at, names, inside, strict=True) if here]
        return [a for a, _ in kept], [n for _, n in kept]
