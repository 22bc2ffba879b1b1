"""What a file calls itself is shown as text: it moves no cursor, sets no colour, turns no writing and draws no formula."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import running

import prunekit as pk
from prunekit.results import storing
from prunekit.results.format import member
from prunekit.visible import visible, visible_name

ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\u2066[red]:smile:[/red]\x7f"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    running.write_data(folder / "data.npz")
    pk.run(running.mapping(folder), folder / "out.h5").close()
    return folder / "out.h5"


def rename_run(file: h5py.File) -> None:
    spec = storing.read_json(file, "spec/resolved")
    storing.replace_text(file, "spec/resolved", json.dumps(spec | {"name": f"a{EVIL}"}))


def rename_tensor(file: h5py.File) -> None:
    for path in ("prunable/tensors", "weights/tensors"):
        tensors = storing.read_json(file, path)
        for tensor in tensors:
            tensor["name"] = tensor["name"].replace("fc.0.weight", f"fc{EVIL}")
        storing.replace_text(file, path, json.dumps(tensors))
    for phase in ("dense", "pruned", "finetuned"):
        file.move(f"weights/{phase}/fc.0.weight", f"weights/{phase}/{member(f'fc{EVIL}')}")


def rename_probe(file: h5py.File) -> None:
    file.move("probes/line", f"probes/li{EVIL.replace('/', '')}ne")


def fail(file: h5py.File) -> None:
    storing.replace_text(file, "environment", json.dumps({"error": f"no{EVIL}"}))
    file.attrs.modify("status", "failed")


def be_new(file: h5py.File) -> None:
    file.attrs["format_version"], file.attrs["prunekit_version"] = 99, f"9{EVIL}"


def lie(file: h5py.File) -> None:
    file.create_group(f"weights/{EVIL}")
    file[f"weights/{EVIL}/x"] = h5py.SoftLink("/spec")


@pytest.mark.parametrize("change", [rename_run, rename_tensor, rename_probe, fail, be_new, lie])
def test_names_in_a_file_are_shown_and_do_nothing(
    change: Callable[[h5py.File], None], made: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.h5"
    path.write_bytes(made.read_bytes())
    with h5py.File(path, "r+", libver=storing.LIBVER) as file:
        change(file)
    shown = ""
    for flags in ([], ["--layers"], ["--json"], ["--verify"]):
        code, out, err = running.cli("inspect", path, *flags)
        assert code == (2 if change in (be_new, lie) else 0)
        shown += out + err
    assert not ACTING.search(shown)
    assert r"\x1b[2J" in shown
    assert "[red]:smile:[" in shown  # no markup either
    if change in (rename_run, rename_tensor):
        assert running.cli("inspect", path, "--plot", tmp_path / "x.svg")[0] == 0
        assert not ACTING.search((tmp_path / "x.svg").read_text())


@pytest.mark.parametrize("name", ["from $10_$ to 5", "$x^$", "$^{$_$", "_private", "数 🙂"])
def test_a_name_is_drawn_as_it_is(name: str, tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    pk.run(running.mapping(tmp_path, name=name, finetune=None, probes=None), tmp_path / "out.h5").close()
    code, _, err = running.cli("inspect", tmp_path / "out.h5", "--plot", tmp_path / "p.svg")
    assert (code, err) == (0, "")
    assert f">{name}: mlp on npz, qm<" in (tmp_path / "p.svg").read_text()


def test_the_key_of_a_spec_is_shown_and_does_nothing(tmp_path: Path) -> None:
    spec = running.write_spec(tmp_path, running.YAML + '"\\e[2J": 1\n')
    said = running.refused("validate", spec)
    assert not ACTING.search(said)
    assert r"\x1b[2J" in said


def test_a_name_makes_no_lines_of_its_own_and_a_long_one_is_drawn_in_time(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    path.write_bytes(made.read_bytes())
    with h5py.File(path, "r+", libver=storing.LIBVER) as file:
        spec = storing.read_json(file, "spec/resolved")
        storing.replace_text(file, "spec/resolved", json.dumps(spec | {"name": "a\nb" + "c" * 10**6}))
    code, out, err = running.cli("inspect", path, "--plot", tmp_path / "p.png")
    assert (code, err) == (0, "")
    assert out.startswith(r"a\nbccc")


def test_what_is_harmless_is_left_as_it_is() -> None:
    text = "Δloss of λ = 1e-3,\tfine — 数 é 🙂\n"
    assert visible(text) == text
    assert visible_name("a\tb\nc\u2028") == r"a\tb\nc\u2028"
