"""A page of HTML that is one file: styles, scripts and numbers lie in it, and it may fetch nothing."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256
from importlib.resources import files

from prunekit.reports.page.markup import element, shown
from prunekit.reports.page.scales import Made
from prunekit.reports.page.sections import Section

MARK = "<!doctype html><!-- a page by prunekit -->"
"""What a page begins with."""

_NO_SCRIPT = "The figures need JavaScript; the tables have their numbers."


def page(title: str, sections: Iterable[Section], data: Made) -> str:
    """A whole page.

    Args:
        title: Of any origin.
        sections: In their order.
        data: More for the script, beside the sections' figures.
    """
    parts = list(sections)
    figures = {key: panels for section in parts for key, panels in section.figures.items()}
    scripts = [_asset("plotly-cartesian.min.js"), _asset("page.js")]
    allowed = " ".join(
        f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
    policy += "form-action 'none'"
    head = (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<link rel="icon" href="data:,">'
        + element("title", shown(title))
        + element("style", _asset("page.css"))
    )
    links = "".join(element("a", shown(part.title), href=f"#{part.name}") for part in parts)
    body = element(
        "header", element("h1", shown(title)), element("nav", links, aria_label="Parts of the page")
    )
    body += element("noscript", element("p", _NO_SCRIPT, class_="note"))
    body += element(
        "main",
        *(element("section", element("h2", shown(part.title)), part.body, id=part.name) for part in parts),
    )
    content = _in_script({"figures": figures, **data})
    body += f'<script type="application/json" id="data">{content}</script>'
    body += "".join(f"<script>{script}</script>" for script in scripts)
    return f'{MARK}\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _in_script(data: Made) -> str:
    """JSON that ends no script element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _asset(name: str) -> str:
    return files("prunekit.reports.page").joinpath("assets", name).read_text(encoding="utf-8")
