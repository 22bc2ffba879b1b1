"""``python -m prunekit`` is ``prunekit``, and shells learn to complete it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import running

import prunekit as pk


def module(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "prunekit", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_the_module_does_what_the_command_does(tmp_path: Path) -> None:
    assert module("--version").stdout.split()[-1] == pk.__version__
    spec = running.write_spec(tmp_path)
    assert module("validate", spec).returncode == 0
    spec.write_text(spec.read_text().replace("sparsity: 0.7", "sparsity: 7"))
    refused = module("validate", spec)
    assert refused.returncode == 2
    assert "sparsity" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_module_calls_itself_by_the_commands_name() -> None:
    helped = module("--help")
    assert helped.returncode == 0
    assert "Usage: prunekit [OPTIONS] COMMAND" in helped.stdout


@pytest.mark.parametrize(
    ("shell", "line"), [("bash", "complete -o"), ("zsh", "#compdef prunekit"), ("fish", "complete")]
)
def test_a_shell_that_is_named_gets_its_script(shell: str, line: str) -> None:
    told = module("--show-completion", shell)
    assert told.returncode == 0, told.stderr
    assert line in told.stdout
    assert "_PRUNEKIT_COMPLETE" in told.stdout


def test_a_shell_that_is_not_known_is_refused() -> None:
    told = module("--show-completion", "tcsh")
    assert told.returncode == 2
    assert "accepted: bash, zsh, fish" in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize(
    ("words", "found"),
    [("prunekit ins", "inspect"), ("prunekit run --over", "--overwrite"), ("prunekit plugins sh", "show")],
)
def test_what_bash_asks_is_answered(words: str, found: str) -> None:
    count = str(len(words.split()) - 1)
    told = module(_PRUNEKIT_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=count)
    assert told.returncode == 0, told.stderr
    assert told.stdout.split() == [found]


def test_bash_takes_the_script() -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    script = module("--show-completion", "bash").stdout
    loaded = subprocess.run(
        [bash, "-c", f"{script}\ncomplete -p prunekit"], capture_output=True, text=True, check=False
    )
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.strip().endswith("prunekit")
