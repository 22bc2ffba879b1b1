"""Distributions whose files cannot be read, and what plugins do while they are imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunekit import PluginManager

METADATA = b"Metadata-Version: 2.1\nName: prunekit-stranger\nVersion: 1.0\n"
OURS = b"[prunekit.plugins]\nstranger = prunekit_stranger\n"
OTHERS = b"[console_scripts]\na = b:c\n"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "prunekit_stranger", raising=False)


def distribution(
    folder: Path, metadata: bytes | None = METADATA, entries: bytes = OURS, code: str = ""
) -> Path:
    info = folder / "prunekit_stranger-1.0.dist-info"
    info.mkdir(parents=True)
    if metadata is not None:
        info.joinpath("METADATA").write_bytes(metadata)
    info.joinpath("entry_points.txt").write_bytes(entries)
    folder.joinpath("prunekit_stranger.py").write_text(code)
    return folder


@pytest.mark.parametrize(
    ("metadata", "entries", "name", "error"),
    [
        (
            METADATA.replace(b"2.1\n", b"2.1\nAuthor: J\xe4ger\n"),
            OURS,
            "stranger",
            "has metadata that cannot be read: ",
        ),
        (
            METADATA,
            OURS.decode().encode("utf-16"),
            "prunekit-stranger",
            "has entry points that cannot be read: ",
        ),
        (
            METADATA,
            OURS + b"a line without a sign\n",
            "prunekit-stranger",
            "has entry points that cannot be read: ",
        ),
    ],
    ids=["metadata-latin-1", "entries-utf-16", "entries-malformed"],
)
def test_a_plugin_whose_files_cannot_be_read_is_listed_as_broken_and_the_others_go_on(
    metadata: bytes, entries: bytes, name: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(distribution(tmp_path, metadata, entries)))
    manager = PluginManager()
    (plugin,) = [p for p in manager.plugins if p.status == "broken"]
    assert (plugin.name, plugin.distribution) == (name, "prunekit-stranger")
    assert plugin.error.startswith(error)
    assert "\n" not in plugin.error
    assert manager.get("criterion", "qm").name == "qm"
    assert PluginManager(block=["prunekit-stranger"]).get("criterion", "qm").name == "qm"


@pytest.mark.parametrize(
    ("metadata", "entries"),
    [
        (METADATA.replace(b"stranger", b"str\xe4nger"), OTHERS),
        (METADATA, OTHERS.decode().encode("utf-16")),
        (METADATA, OTHERS + b"a line without a sign\n"),
        (METADATA, b"\xff\xfe\x00"),
    ],
    ids=["metadata-latin-1", "entries-utf-16", "entries-malformed", "entries-binary"],
)
def test_what_cannot_be_read_of_distributions_that_are_no_plugins_is_passed_by(
    metadata: bytes, entries: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(distribution(tmp_path, metadata, entries)))
    assert all(p.status == "loaded" for p in PluginManager().plugins)


@pytest.mark.parametrize("metadata", [None, b"", b"Metadata-Ver"], ids=["absent", "empty", "cut"])
def test_plugins_of_distributions_without_a_name_are_all_loaded(
    metadata: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other" / "leftover-1.0.dist-info"
    other.mkdir(parents=True)
    other.joinpath("METADATA").write_bytes(b"")
    monkeypatch.syspath_prepend(str(distribution(tmp_path / "plugin", metadata)))
    monkeypatch.syspath_prepend(str(other.parent))
    (plugin,) = [p for p in PluginManager().plugins if p.name == "stranger"]
    assert (plugin.status, plugin.distribution, plugin.version) == ("loaded", "", "")


CANCELLED = "import asyncio\nraise asyncio.CancelledError('no loop')"
OWN = "class Stop(BaseException): pass\nraise Stop('enough')"
HOOK = "import prunekit as pk\n@pk.hookimpl\ndef prunekit_register_criteria():\n    raise GeneratorExit('on registering')\n"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (CANCELLED, "does not import: CancelledError: no loop"),
        (OWN, "does not import: Stop: enough"),
        ("raise GeneratorExit", "does not import: GeneratorExit: "),
        (HOOK, "does not register: GeneratorExit: on registering"),
    ],
    ids=["cancelled", "own", "generator-exit", "hook"],
)
def test_whatever_a_plugin_raises_leaves_out_that_plugin_only(
    code: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(distribution(tmp_path, code=code)))
    manager = PluginManager()
    (plugin,) = [p for p in manager.plugins if p.status == "broken"]
    assert (plugin.name, plugin.error) == ("stranger", error)
    assert manager.get("criterion", "qm").name == "qm"


def test_an_interruption_while_a_plugin_is_imported_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(distribution(tmp_path, code="raise KeyboardInterrupt")))
    with pytest.raises(KeyboardInterrupt):
        PluginManager()


NOISY = """\
import os, subprocess, sys
print("a banner")
os.write(1, b"from below\\n")
subprocess.run([sys.executable, "-c", "print('a child')"])
import prunekit as pk
@pk.hookimpl
def prunekit_register_criteria():
    print("on registering")
    return []
"""


def test_what_a_plugin_prints_on_import_goes_to_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(
        str(distribution(tmp_path, code=NOISY.replace("os.write", "len and None and ")))
    )
    PluginManager()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["a banner", "on registering"]


@pytest.mark.parametrize("command", [["plugins", "--json"], ["plugins", "show", "qm", "--json"], ["schema"]])
def test_json_stays_json_whatever_plugins_print(command: list[str], tmp_path: Path) -> None:
    path = os.pathsep.join([str(distribution(tmp_path, code=NOISY)), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "prunekit_cli", *command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=True,
    )
    json.loads(done.stdout)
    assert {"a banner", "from below", "a child", "on registering"} <= set(done.stderr.splitlines())


@pytest.mark.parametrize(
    "entries", [OTHERS.decode().encode("utf-16"), OURS + b"no sign\n"], ids=["utf-16", "malformed"]
)
def test_commands_go_on_beside_entry_points_that_nothing_can_read(entries: bytes, tmp_path: Path) -> None:
    path = os.pathsep.join([str(distribution(tmp_path, entries=entries)), *filter(None, sys.path)])
    command = [sys.executable, "-m", "prunekit_cli", "plugins", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=True
    )
    broken = [row for row in json.loads(done.stdout) if row["status"] == "broken"]
    assert [row["distribution"] for row in broken] == ["prunekit-stranger"] * (b"prunekit" in entries)
