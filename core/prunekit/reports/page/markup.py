"""HTML from plain data, with everything escaped that comes from a file."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from prunekit.visible import shortened, visible

_PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"


def shown(value: object) -> str:
    """A text of any origin, in which nothing acts."""
    return html.escape(shortened(visible(str(value))))


def element(tag: str, *inside: str, **attributes: str) -> str:
    """An element; what is inside is HTML already, values of attributes are not. ``_`` in their names is ``-``."""
    said = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(visible(v))}"' for name, v in attributes.items()
    )
    return f"<{tag}{said}>{''.join(inside)}</{tag}>"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """A table whose first columns are text, and whose others are numbers."""
    head = "".join(element("th", shown(title), scope="col") for title in columns)
    body = "".join(
        element(
            "tr",
            *(
                element("td", shown(cell), **({} if i < left else {"class_": "n"}))
                for i, cell in enumerate(row)
            ),
        )
        for row in rows
    )
    inside = element("thead", element("tr", head)) + element("tbody", body)
    return element("div", element("table", inside), class_="scroll", tabindex="0")


def folded(title: str, inside: str) -> str:
    """A part that opens on a click, without a script too."""
    return element("details", element("summary", shown(title)), inside)


def anchor(name: str) -> str:
    """A name for a part of the page."""
    return "".join(letter if letter in _PLAIN else f".{ord(letter):x}" for letter in name)
