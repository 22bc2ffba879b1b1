"""With ``--no-code`` a spec from a stranger is data: no plugin is imported and no factory called."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import running

import prunekit as pk

NOISY = Path(__file__).parents[1] / "data" / "noisy"
FACTORY = """\
from pathlib import Path
Path("imported").touch()
def make(*_):
    Path("called").touch()
"""


def prunekit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line beside a plugin that prints as soon as it is imported, and a module with a factory."""
    (folder / "mine.py").write_text(FACTORY)
    return subprocess.run(
        [sys.executable, "-c", "from prunekit_cli.main import main; main()", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(NOISY), *sys.path])},
    )


@pytest.mark.parametrize("command", ["run", "validate"])
def test_built_in_components_run_and_no_plugin_is_imported(command: str, tmp_path: Path) -> None:
    running.write_spec(tmp_path)
    done = prunekit(tmp_path, command, "small.yaml", "--no-code")
    assert done.returncode == 0, done.stderr
    assert "printed" not in done.stdout + done.stderr
    assert "printed" in prunekit(tmp_path, "validate", "small.yaml").stderr


@pytest.mark.parametrize("command", ["run", "validate"])
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{name: mlp, hidden: [6]}", '{name: python, factory: "mine:make"}', "model 'python' runs Python"),
        ("{name: npz, path: data.npz}", '{name: python, factory: "mine:make"}', "dataset 'python' runs"),
        (
            "{name: qm, lambda: 1e-3}",
            "noisy",
            "Plugin 'fake_noisy' of prunekit-fake-noisy 0.5 is not built in",
        ),
    ],
    ids=["model", "data set", "plugin"],
)
def test_python_that_a_spec_names_is_refused(
    command: str, old: str, new: str, words: str, tmp_path: Path
) -> None:
    running.write_spec(tmp_path, running.YAML.replace(old, new))
    done = prunekit(tmp_path, command, "small.yaml", "--no-code")
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "printed" not in done.stderr
    assert not (tmp_path / "imported").exists()
    assert not (tmp_path / "small.h5").exists()


def test_the_same_from_python(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, model={"name": "python", "factory": "running:convnet"})
    with pytest.raises(pk.SpecError, match="runs Python that the spec names"):
        pk.run(spec, tmp_path / "out.h5", code=False)
