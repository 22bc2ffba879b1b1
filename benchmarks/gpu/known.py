"""Make prunekit's plugins known to a Python in which it is not installed: `python known.py SITE`.

Writes the metadata of a distribution into the folder SITE, with the entry points of pyproject.toml, so that the tree
itself is what runs. Where prunekit is installed, nothing is written.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> None:
    try:
        distribution("prunekit")
    except PackageNotFoundError:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        folder = Path(sys.argv[1]) / f"prunekit-{project['version']}.dist-info"
        folder.mkdir(parents=True)
        metadata = f"Metadata-Version: 2.1\nName: prunekit\nVersion: {project['version']}\n"
        (folder / "METADATA").write_text(metadata, encoding="utf-8")
        groups = {**project["entry-points"], "console_scripts": project["scripts"]}
        lines = [
            f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
            for group, points in groups.items()
        ]
        (folder / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
