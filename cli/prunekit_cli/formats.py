"""Tables as text for papers and other programs: LaTeX, Markdown, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum

from rich.console import RenderableType
from rich.table import Table

from prunekit.visible import visible

_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{
        "Δ": r"$\Delta$",
        "λ": r"$\lambda$",
        "±": r"$\pm$",
        "×": r"$\times$",
        "²": "$^2$",
        "–": "--",
        "…": r"\dots",
    },
}


class Format(StrEnum):
    """What a table is printed as."""

    latex = "latex"
    markdown = "markdown"
    csv = "csv"


def printed(parts: Iterable[RenderableType], form: Format) -> str:
    """All tables among some parts of a screen, one after another; what is no table is left out."""
    tables = [part for part in parts if isinstance(part, Table)]
    return "\n\n".join(_FORMS[form](*_content(table)) for table in tables)


def _content(table: Table) -> tuple[str, list[str], list[list[str]], list[str]]:
    """Title, heads, rows and sides of a table."""
    columns = [[visible(str(cell)) for cell in column.cells] for column in table.columns]
    heads = [visible(str(column.header)) for column in table.columns]
    sides = ["l" if column.justify == "left" else "r" for column in table.columns]
    return visible(str(table.title or "")), heads, [list(row) for row in zip(*columns, strict=True)], sides


def _latex(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], sides: Sequence[str]) -> str:
    """With booktabs' rules; a minus is one."""
    lines = [f"% {title}"] if title else []
    lines += [f"\\begin{{tabular}}{{{''.join(sides)}}}", "\\toprule"]
    lines += [" & ".join(map(_in_latex, heads)) + r" \\", "\\midrule"]
    lines += [" & ".join(map(_in_latex, row)) + r" \\" for row in rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def _in_latex(cell: str) -> str:
    escaped = "".join(_LATEX.get(sign, sign) for sign in cell)
    return f"${escaped}$" if cell.startswith("-") and cell[1:2].isdigit() and "$" not in escaped else escaped


def _markdown(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], sides: Sequence[str]) -> str:
    def line(cells: Iterable[str]) -> str:
        escaped = (cell.replace("|", r"\|") for cell in cells)
        return f"| {' | '.join(escaped)} |"

    lines = [f"**{title}**", ""] if title else []
    lines += [line(heads), line("---:" if side == "r" else "---" for side in sides)]
    return "\n".join([*lines, *map(line, rows)])


def _csv(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], sides: Sequence[str]) -> str:
    """Numbers without signs of thousands and with percentages as they are shown; the title is a comment."""
    out = io.StringIO()
    if title:
        out.write(f"# {title}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([_number(cell) for cell in row] for row in rows)
    return out.getvalue().rstrip("\n")


def _number(cell: str) -> str:
    bare = cell.replace(",", "")
    if cell == "–":
        return ""
    return bare if bare.lstrip("-").replace(".", "", 1).isdigit() else cell


_FORMS: dict[Format, Callable[[str, Sequence[str], Sequence[Sequence[str]], Sequence[str]], str]] = {
    Format.latex: _latex,
    Format.markdown: _markdown,
    Format.csv: _csv,
}
