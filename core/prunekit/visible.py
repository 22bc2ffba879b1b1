"""Text of any origin as it may be shown: in a terminal, a page or a figure nothing in it acts, everything is seen.

Names and messages come out of files and plugins. What would move a cursor, set a title, turn the direction of
writing or hide is written as an escape, in the manner of Python's own.
"""

from __future__ import annotations

import re

_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, but tab and line feed
    "\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # unseen, or turning the direction
    "\ud800-\udfff\U000e0000-\U000e007f]"  # halves of characters, tags
)
_LONG = 300
_BREAKS = re.compile("[\t\n]")


def visible(text: str) -> str:
    r"""A text in which nothing acts but line feeds and tabs.

    Examples:
        >>> print(visible("a\x1b[2J\u202eb"))
        a\x1b[2J\u202eb
    """
    return _ACTING.sub(_escaped, text)


def visible_name(text: str) -> str:
    r"""A name on one line: line feeds and tabs are written as escapes too.

    Examples:
        >>> print(visible_name("a\nb"))
        a\nb
    """
    return _BREAKS.sub(_escaped, visible(text))


def drawn(text: str) -> str:
    r"""A text for matplotlib, which takes what stands between two ``$`` for a formula.

    Examples:
        >>> print(drawn("from $10 to $5"))
        from \$10 to \$5
    """
    return shortened(visible(text)).replace("$", r"\$")


def shortened(text: str) -> str:
    """A text of at most a few lines; a figure is never done with drawing a million letters."""
    return text if len(text) <= _LONG else f"{text[:_LONG]} … ({len(text)} letters)"


def _escaped(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]
