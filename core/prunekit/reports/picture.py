"""A figure that is filled and written: on a screen's width, or as wide as one or two columns of a paper."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit.errors import ResultsError, SpecError
from prunekit.results.replacing import replacing
from prunekit.visible import drawn, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS = (".png", ".pdf", ".svg")
_WIDTHS = {1: 3.4, 2: 7.0}
"""Inches, within what conferences and journals give one column and two."""
_SCREEN = (11, 4.6)
_PANEL = 0.72
"""Height of a panel that has a column to itself, as a part of its width."""
_MARKED = 60
_STEADY = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
"""One file gives one picture, byte for byte: no dates."""


def picture(path: Path, fill: Callable[[Figure], None], title: str, columns: int | None = None) -> None:
    """Fill a figure and write it. No style, backend or setting of the user's has a part in it, and none is changed.

    Args:
        path: Ends in ``.png``, ``.pdf`` or ``.svg``; in vector files texts stay texts, and in a PDF fonts are embedded.
        fill: Fills the empty figure.
        title: Stands above it; not in the figures for papers, which have captions.
        columns: How wide it is: 3.4 inches, 7 inches, or ``None`` for a screen's 11. In one column, panels that
            ``fill`` puts side by side come one below the other.

    Raises:
        SpecError: If the file name is not one of a picture, or there is no such width.
        ResultsError: If the file cannot be written.
    """
    check(path, columns)
    kind = path.suffix[1:].lower()
    with _filled(fill, title, columns) as figure:
        try:
            with replacing(Path(os.path.realpath(path))) as temporary:
                figure.savefig(temporary, dpi=300 if columns else 150, format=kind, metadata=_STEADY[kind])
        except OSError as error:
            raise ResultsError(f"{path}: cannot be written: {error.strerror}") from None


@dataclass(frozen=True)
class Picture:
    """A figure that a notebook shows below the cell whose last value it is.

    Attributes:
        png: The picture.
        title: What it is of.
    """

    png: bytes
    title: str

    def _repr_png_(self) -> bytes:
        return self.png

    def __repr__(self) -> str:
        return f"<picture of {self.title}>"


def inline(fill: Callable[[Figure], None], title: str, columns: int | None = None) -> Picture:
    """Fill a figure as :func:`picture` does, for a notebook.

    Raises:
        SpecError: If there is no such width.
    """
    import io

    check_width(columns)
    content = io.BytesIO()
    with _filled(fill, title, columns) as figure:
        figure.savefig(content, dpi=150 if columns else 80, format="png", metadata=_STEADY["png"])
    return Picture(content.getvalue(), visible(title))


@contextmanager
def _filled(fill: Callable[[Figure], None], title: str, columns: int | None) -> Iterator[Figure]:
    settings: dict[str, object] = {"svg.fonttype": "none", "svg.hashsalt": "prunekit", "pdf.fonttype": 42}
    settings |= {"font.size": 7.5, "lines.linewidth": 1.0, "lines.markersize": 4} if columns else {}
    with default_style(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for what the font lacks
        figure = _figure(columns)
        fill(figure)
        thin_out(figure)
        _fitted(figure, columns)
        if columns is None:
            figure.suptitle(drawn(title))
        yield figure


def thin_out(figure: Figure) -> None:
    """Leave out the marks of curves that have so many that they run into each other."""
    for axes in figure.axes:
        for line in axes.get_lines():
            if line.get_linestyle() not in ("None", "", " ") and np.size(line.get_xdata()) > _MARKED:
                line.set_marker("")


def embedded(fill: Callable[[Figure], None], about: str) -> str:
    """A figure as an image in a page's own text."""
    import html
    import io
    from base64 import b64encode

    with default_style({}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure, content = _figure(None), io.BytesIO()
        fill(figure)
        thin_out(figure)
        figure.savefig(content, format="png", dpi=120, metadata=_STEADY["png"])
    return f'<img alt="{html.escape(about)}" src="data:image/png;base64,{b64encode(content.getvalue()).decode()}">'


def check(path: Path, columns: int | None = None) -> None:
    """Refuse what cannot become a picture.

    Raises:
        SpecError: If the name ends in something else, or the width is of no such number of columns.
        ResultsError: If no regular file lies there.
    """
    if path.suffix.lower() not in _FORMATS:
        raise SpecError(f"--plot {path}: must end in {', '.join(_FORMATS)}")
    check_width(columns)
    if path.exists() and not path.is_file():
        raise ResultsError(f"{path}: is not a regular file; a picture must be one")


def check_width(columns: int | None) -> None:
    """Refuse a figure for a paper that is not as wide as one or two of its columns.

    Raises:
        SpecError: If there is no such width.
    """
    if columns not in (None, *_WIDTHS):
        raise SpecError(f"--columns {columns}: must be 1 or 2")


@contextmanager
def default_style(settings: Mapping[str, object]) -> Iterator[None]:
    """Draw as the library does by itself but for some settings, whatever the user's are, which come back."""
    with _matplotlib().style.context(["default", dict(settings)], after_reset=True):
        yield


def _matplotlib() -> Any:
    """The library, without its ``pyplot``; also where it cannot be imported with the user's settings."""
    try:
        import_module("matplotlib.style")
    except ModuleNotFoundError:
        raise
    except Exception:  # a backend that there is not, a file of settings that cannot be read
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]  # halves
        here = find_spec("matplotlib")
        backend = os.environ.pop("MPLBACKEND", None)
        try:
            # Where the library's own settings lie: it looks in the current folder first.
            with chdir(Path(here.origin).parent / "mpl-data" if here and here.origin else "."):
                import_module("matplotlib.style")
        finally:
            if backend is not None:
                os.environ["MPLBACKEND"] = backend
    return import_module("matplotlib")


def _figure(columns: int | None) -> Figure:
    from matplotlib.figure import Figure

    if columns is None:
        return Figure(layout="constrained", figsize=_SCREEN)
    if columns == 2:
        return Figure(layout="constrained", figsize=(_WIDTHS[2], _WIDTHS[2] * _SCREEN[1] / _SCREEN[0]))

    class Column(Figure):
        """Panels one below the other."""

        def subplots(self, nrows: int = 1, ncols: int = 1, *, squeeze: bool = True, **how: Any) -> Any:
            if ncols == 1:
                return super().subplots(nrows, ncols, squeeze=squeeze, **how)
            how.pop("width_ratios", None)
            panels = super().subplots(nrows * ncols, 1, squeeze=False, **how)
            return panels[:, 0] if squeeze and nrows == 1 else panels.reshape(nrows, ncols)

        def legend(self, *args: Any, **how: Any) -> Any:
            how["ncols"] = min(how.get("ncols", 1), 2)
            return super().legend(*args, **how)

    return Column(layout="constrained", figsize=(_WIDTHS[1], _WIDTHS[1] * _PANEL))


def _fitted(figure: Figure, columns: int | None) -> None:
    """Give a figure the width that was asked for, whatever the one that drew it has set."""
    if columns is None:
        return
    width, height = figure.get_size_inches()
    if columns == 1:
        panels = [axis for axis in figure.axes if axis.get_subplotspec() is not None and axis.get_visible()]
        height = _WIDTHS[1] * _PANEL * max(1, len(panels))
    else:
        height *= _WIDTHS[2] / width
    figure.set_size_inches(_WIDTHS[columns], height)
