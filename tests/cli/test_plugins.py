"""``prunekit plugins`` and ``--block``, in a process of their own with fake distributions on the path."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parents[1] / "data"
ALL = ("good", "failing_import", "misspelled_hook", "duplicate_name", "missing_hookimpl")
SPEC = """\
version: 1
model: {name: mlp, hidden: [8]}
dataset: {name: digits}
prune:
  criterion: qm
  scheduler: {name: one_shot, sparsity: 0.5}
  examples: 50
"""


def prunekit(
    *arguments: str, fakes: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    paths = [str(DATA / fake) for fake in fakes]
    return subprocess.run(
        [sys.executable, "-c", "from prunekit_cli.main import main; main()", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONIOENCODING": "utf-8",
            **environment,
        },
    )


def cells(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines() if line.strip() and "──" not in line]


@pytest.fixture(scope="module")
def listed() -> subprocess.CompletedProcess[str]:
    return prunekit("plugins", fakes=ALL)


@pytest.fixture(scope="module")
def as_json() -> list[dict[str, Any]]:
    done = prunekit("plugins", "--json", fakes=ALL)
    assert (done.returncode, done.stderr) == (0, "")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_the_list_shows_what_there_is_and_from_where(listed: subprocess.CompletedProcess[str]) -> None:
    assert listed.returncode == 0
    rows = cells(listed.stdout)
    assert rows[0] == ["kind", "name", "plugin", "distribution", "version", "status"]
    assert ["criterion", "fake", "fake_good", "prunekit-fake-good", "1.2.3", "loaded"] in rows
    assert ["–", "–", "fake_import", "prunekit-fake-import", "0.1", "broken"] in rows
    assert ["criterion", "qm", "fake_duplicate", "prunekit-fake-duplicate", "0.3", "conflict"] in rows


def test_the_list_explains_every_trouble_once_on_stderr(listed: subprocess.CompletedProcess[str]) -> None:
    for text in (
        "criterion 'qm' is provided twice:",
        "No module named 'no_such_dependency'. `prunekit plugins show fake_import` shows the traceback.",
        "prunekit_register_criterions; did you mean 'prunekit_register_criteria'?",
        "without the decorator @prunekit.hookimpl",
    ):
        assert listed.stderr.count(text) == 1
    assert "Traceback" not in listed.stderr


def test_without_strangers_there_is_no_trouble() -> None:
    done = prunekit("plugins")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_json_list_has_a_row_per_component_and_per_plugin_without_any(
    as_json: list[dict[str, Any]],
) -> None:
    assert {
        "kind": "scheduler",
        "name": "quarters",
        "plugin": "fake_good",
        "module": "prunekit_fake_good",
        "distribution": "prunekit-fake-good",
        "version": "1.2.3",
        "status": "loaded",
        "error": None,
    } in as_json
    (broken,) = [r for r in as_json if r["plugin"] == "fake_misspelled"]
    assert (broken["kind"], broken["status"]) == (None, "broken")
    assert broken["error"].startswith("implements a hook that does not exist")
    both = [r for r in as_json if (r["kind"], r["name"]) == ("criterion", "qm")]
    assert [r["status"] for r in both] == ["conflict"] * 2


def test_show_gives_origin_documentation_and_options() -> None:
    done = prunekit("plugins", "show", "fake", fakes=("good",))
    assert (done.returncode, done.stderr) == (0, "")
    head = done.stdout.splitlines()
    assert head[0] == "criterion fake"
    assert head[1] == "from prunekit_fake_good.Fake, plugin 'fake_good' of prunekit-fake-good 1.2.3"
    assert "|θ|^power." in head
    rows = [line.strip() for line in done.stdout.splitlines()]
    assert any(r.startswith("lambda   float ≥ 0 ") and "Locality weight" in r for r in rows)
    assert any(
        r.startswith("power    float > 0, ≤ 8") and r.endswith("Exponent of the saliency.") for r in rows
    )
    assert any(r.startswith("shape    round | square") and r.endswith("`round` or `square`.") for r in rows)
    assert any(r.startswith("layers   list[int] | null") for r in rows)


def test_show_as_json() -> None:
    done = prunekit("plugins", "show", "fake", "--json", fakes=("good",))
    (shown,) = json.loads(done.stdout)
    assert shown["kind"] == "criterion"
    assert shown["class"] == "prunekit_fake_good.Fake"
    assert [o["name"] for o in shown["options"]] == ["lambda", "power", "shape", "layers"]
    assert shown["options"][1] == {
        "name": "power",
        "type": "float > 0, ≤ 8",
        "default": "2.0",
        "description": "Exponent of the saliency.",
    }


def test_show_gives_required_options_and_statistics() -> None:
    (npz,) = json.loads(prunekit("plugins", "show", "npz", "--json").stdout)
    assert [(o["name"], o["type"], o["default"]) for o in npz["options"]] == [
        ("split_seed", "int ≥ 0", "0"),
        ("path", "path", "required"),
    ]
    (qm,) = json.loads(prunekit("plugins", "show", "qm", "--json").stdout)
    assert {"gradient", "ggn_diagonal most=256"} == set(qm["requires"])
    assert prunekit("plugins", "show", "jsonl").stdout.endswith("\nNo options.\n")


def test_every_option_of_every_built_in_has_a_meaning() -> None:
    from prunekit import PluginManager
    from prunekit_cli.plugins import record_of

    for plugin in PluginManager().plugins:
        for component in plugin.components:
            for option in record_of(plugin, component)["options"]:
                assert option["description"], f"{component.kind} {component.name}: {option['name']}"
                assert "annotation" not in option["type"].lower()


def test_a_name_of_two_kinds_shows_both() -> None:
    kinds = [item["kind"] for item in json.loads(prunekit("plugins", "show", "python", "--json").stdout)]
    assert sorted(kinds) == ["dataset", "model"]


def test_show_of_a_conflict_shows_both_and_says_so() -> None:
    done = prunekit("plugins", "show", "qm", fakes=("duplicate_name",))
    assert done.returncode == 0
    assert done.stdout.count("criterion qm\n") == 2
    assert "`--block fake_duplicate`" in done.stderr


@pytest.mark.parametrize("name", ["fake_import", "prunekit_fake_import", "prunekit-fake-import"])
def test_show_of_a_broken_plugin_shows_its_traceback(name: str) -> None:
    done = prunekit("plugins", "show", name, fakes=("failing_import",))
    assert done.returncode == 0
    assert done.stdout.startswith("plugin fake_import: broken\n")
    assert done.stdout.endswith("ModuleNotFoundError: No module named 'no_such_dependency'\n")


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    done = prunekit("plugins", "show", "fakee", fakes=("good", "failing_import"))
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first == "nothing is called 'fakee'; did you mean 'fake'? `prunekit plugins` lists what there is."
    assert second.startswith("Plugin 'fake_import' of prunekit-fake-import 0.1 does not import")


def test_a_conflict_stops_a_run_and_block_cures_it(tmp_path: Path) -> None:
    spec, out = tmp_path / "s.yaml", tmp_path / "s.h5"
    spec.write_text(SPEC)
    stopped = prunekit("run", str(spec), "--out", str(out), fakes=("duplicate_name",))
    assert stopped.returncode == 2
    assert re.search(r":5:\d+: prune\.criterion: criterion 'qm' is provided twice:", stopped.stderr)
    assert "Traceback" not in stopped.stderr
    assert not out.exists()
    cured = prunekit(
        "run", str(spec), "--out", str(out), "--block", "fake_duplicate", fakes=("duplicate_name",)
    )
    assert cured.returncode == 0, cured.stderr
    assert out.exists()


def test_a_run_survives_broken_plugins_and_tells_observers(tmp_path: Path) -> None:
    spec, log = tmp_path / "s.yaml", tmp_path / "log"
    spec.write_text(SPEC.replace("qm", "{name: fake, power: 1.0}"))
    done = prunekit(
        "run", str(spec), "--out", str(tmp_path / "s.h5"), fakes=("good", "failing_import"), FAKE_LOG=str(log)
    )
    assert done.returncode == 0, done.stderr
    assert log.read_text() == "complete 1\n"


def test_blocking_what_is_not_there_is_refused(tmp_path: Path) -> None:
    spec = tmp_path / "s.yaml"
    spec.write_text(SPEC)
    done = prunekit("run", str(spec), "--out", str(tmp_path / "s.h5"), "--block", "nothing_like_it")
    assert done.returncode == 2
    assert done.stderr.startswith("cannot block 'nothing_like_it': no such plugin, module or distribution. ")
