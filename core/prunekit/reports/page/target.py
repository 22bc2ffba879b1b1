"""Where a page is written: to a new file, or over one that prunekit wrote."""

from __future__ import annotations

import os
from pathlib import Path

from prunekit.errors import ResultsError, SpecError
from prunekit.reports.page.page import MARK
from prunekit.results.replacing import replacing


def check_target(path: Path, overwrite: bool) -> Path:
    """Refuse what cannot become a page.

    Raises:
        SpecError: If the name ends in something else.
        ResultsError: If something is there that may not be replaced.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise SpecError(f"--html {path}: must end in .html or .htm")
    if not path.exists():
        return path
    if not overwrite:
        raise ResultsError(f"{path}: exists; use --overwrite to replace it")
    if not path.is_file() or not _is_ours(path):
        raise ResultsError(
            f"{path}: is not a page that prunekit wrote, so --overwrite does not replace it; remove it, or choose "
            "another name"
        )
    return path


def write(path: Path, content: str) -> None:
    """Write a page; a link stays, and what it leads to is written.

    Raises:
        ResultsError: If the system refuses.
    """
    try:
        with replacing(Path(os.path.realpath(path))) as temporary:
            temporary.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from None


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(len(MARK) + 1)
    return not start or start.startswith(MARK.encode())
