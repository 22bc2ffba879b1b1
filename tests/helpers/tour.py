"""The guided tour: its cells run without Jupyter, and the page of the docs is made of the notebook.

python tests/helpers/tour.py    runs the notebook in a fresh folder, keeps what its cells show, and writes docs/tour.md
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import sys
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "tour.ipynb"
PAGE = ROOT / "docs" / "tour.md"
NOTE = "<!-- Made of examples/tour.ipynb by tests/helpers/tour.py; change the notebook, then run that. -->\n"


def read() -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return notebook


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def execute(cells: list[dict[str, Any]], names: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Run code cells in order, as Jupyter does, in the current folder; the outputs of each."""
    for cell in cells:
        printed, tree = io.StringIO(), ast.parse(source(cell))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, cell["id"], "exec"), names)
            value = (
                None if last is None else eval(compile(ast.Expression(last.value), cell["id"], "eval"), names)
            )
        outputs: list[dict[str, Any]] = []
        if printed.getvalue():
            text = printed.getvalue().splitlines(keepends=True)
            outputs.append({"name": "stdout", "output_type": "stream", "text": text})
        if value is not None:
            outputs.append(
                {
                    "data": shown(value),
                    "execution_count": None,
                    "metadata": {},
                    "output_type": "execute_result",
                }
            )
        yield outputs


def shown(value: object) -> dict[str, Any]:
    """What a notebook keeps of a value."""
    data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
    methods: dict[str, Callable[[], Any] | None] = {
        kind: getattr(value, f"_repr_{name}_", None)
        for kind, name in (("text/html", "html"), ("image/png", "png"))
    }
    if methods["text/html"] is not None:
        data["text/html"] = methods["text/html"]().splitlines(keepends=True)
    if methods["image/png"] is not None:
        data["image/png"] = b64encode(methods["image/png"]()).decode()
    return data


def page(notebook: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """The notebook as Markdown, and its pictures by file name."""
    parts, pictures = [NOTE], {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(source(cell).replace("](../docs/", "](") + "\n")
            continue
        parts.append(f"```python\n{source(cell)}\n```\n")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```\n")
            elif "image/png" in data:
                name = f"tour-{len(pictures) + 1}.png"
                pictures[name] = b64decode(data["image/png"])
                about = "".join(data["text/plain"]).removeprefix("<picture of ").removesuffix(">")
                parts.append(f"![{about}](images/{name})\n")
            elif "text/html" in data:
                parts.append(markdown("".join(data["text/html"])))
            else:
                parts.append(f"```text\n{''.join(data['text/plain'])}\n```\n")
    return "\n".join(parts), pictures


def markdown(html: str) -> str:
    """Tables and paragraphs of prunekit's own HTML."""
    reader = _Tables()
    reader.feed(html)
    return "\n".join(reader.parts)


class _Tables(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._row: list[str] = []
        self._text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._text = ""
        if tag == "table":
            self._lines: list[str] = []
        if tag in ("th", "td") and "right" in (dict(attrs).get("style") or ""):
            self._sides = "---:"
        elif tag in ("th", "td"):
            self._sides = "---"
        if tag == "tr":
            self._row, self._marks = [], []

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        text = self._text.strip().replace("|", r"\|")
        if tag == "p":
            self.parts.append(text.replace("\n", "  \n") + "\n")
        elif tag == "caption":
            self.parts.append(f"**{text}**\n")
        elif tag in ("th", "td"):
            self._row.append(text)
            self._marks.append(self._sides)
        elif tag == "tr":
            self._lines.append(f"| {' | '.join(self._row)} |")
            if len(self._lines) == 1:
                self._lines.append(f"|{'|'.join(self._marks)}|")
        elif tag == "table":
            self.parts.append("\n".join(self._lines) + "\n")
        self._text = ""


def main() -> None:
    notebook = read()
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for number, (cell, outputs) in enumerate(zip(code, execute(code, {}), strict=True), 1):
            cell["outputs"], cell["execution_count"] = outputs, number
            for output in outputs:
                output |= {"execution_count": number} if "data" in output else {}
            print(f"cell {number} of {len(code)}", file=sys.stderr)
    text, pictures = page(notebook)
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(text, encoding="utf-8")
    for name, content in pictures.items():
        (PAGE.parent / "images" / name).write_bytes(content)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
