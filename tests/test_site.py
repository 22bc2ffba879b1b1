"""The documentation's code runs, its specs are accepted, its commands exist; the reference leaves nothing out."""

from __future__ import annotations

import re
import runpy
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.plugins.host import PluginManager
from prunekit.plugins.kinds import KINDS
from prunekit.spec import json_schema
from prunekit.spec import text as yaml

ROOT = Path(__file__).resolve().parent.parent
GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"), run_name="generate")
PAGES = sorted(p for p in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])
ELSEWHERE = {"plugins.md", "format.md", "huggingface.md", "verify.md", "tour.md"}
"""Pages whose Python runs in tests of their own."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "docs").as_posix() if path.parent != ROOT else path.name


def blocks(path: Path, language: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.M | re.S)
    return [textwrap.dedent(block) for _, block in found]


def prelude() -> dict[str, Any]:
    """What pages take to be there: a network, batches, masks, an optimizer."""
    torch.manual_seed(0)
    model: Any = nn.Module()
    model.model = nn.Module()
    model.model.layers = nn.Sequential(
        *(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)) for _ in range(2))
    )
    model.head = nn.Linear(6, 3)
    model.forward = lambda x: model.head(torch.relu(model.model.layers(x)))
    batches = [(torch.randn(40, 6), torch.randint(3, (40,)))]
    masks = {n: torch.rand(p.shape) > 0.3 for n, p in model.named_parameters() if p.ndim > 1}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {
        "model": model,
        "batches": batches,
        "valid_batches": batches,
        "masks": masks,
        "optimizer": optimizer,
        "pk": pk,
        "torch": torch,
    }


PYTHON = [p for p in PAGES if blocks(p, "python") and p.name not in ELSEWHERE]


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
@pytest.mark.filterwarnings("ignore::prunekit.PrunekitWarning")
def test_the_code_of_a_page_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    module = ModuleType("documented")
    vars(module).update(prelude())
    if path.name == "sweeps.md":
        small_sweep(tmp_path / "grid")
    for number, block in enumerate(blocks(path, "python")):
        exec(compile(block, f"{name_of(path)}, block {number}", "exec"), vars(module))


def small_sweep(folder: Path) -> None:
    import running

    folder.with_suffix(".yaml").write_text(
        f"""\
base: {ROOT / "examples" / "quickstart.yaml"}
parameters:
  train.epochs: {{values: [1]}}
  finetune: {{values: [null]}}
  probes: {{values: [[]]}}
  prune.scheduler.steps: {{values: [2]}}
  prune.criterion.lambda: {{values: [0.0, 1e-3]}}
seeds: 2
"""
    )
    code, _, told = running.cli("sweep", str(folder.with_suffix(".yaml")), "--out", str(folder))
    assert code == 0, told


def specs() -> Iterator[tuple[str, str]]:
    for path in PAGES:
        for number, block in enumerate(blocks(path, "yaml")):
            yield f"{name_of(path)}-{number}", block


BASE: dict[str, Any] = {"version": 1, "model": {"name": "mlp"}, "dataset": {"name": "digits"}}
PRUNE: dict[str, Any] = {"criterion": "lm", "scheduler": {"name": "one_shot", "sparsity": 0.5}}


@pytest.mark.parametrize(("_place", "block"), list(specs()), ids=[place for place, _ in specs()])
def test_the_specs_of_a_page_are_accepted(_place: str, block: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for part in re.split(r"^---$", block, flags=re.M):
        data = yaml.parse(part, "page").data
        assert isinstance(data, dict)
        if "parameters" in data:
            continue  # a sweep
        if "squared" in part:
            continue  # a plugin that the page itself writes
        whole = {**BASE, **data}
        if "prune" in data and isinstance(data["prune"], dict):
            whole["prune"] = {**PRUNE, **data["prune"]}
        jsonschema.validate(whole, json_schema())


def commands() -> Iterator[tuple[str, list[str]]]:
    for path in PAGES:
        for block in blocks(path, "sh"):
            for line in re.sub(r"\\\n", " ", block).splitlines():
                for part in re.split(r"&&|\|", line):
                    words = shlex.split(part, comments=True)
                    if words:
                        yield f"{name_of(path)}: {' '.join(words)}", words


def options_of(command: Any) -> set[str]:
    return {o for p in command.params if p.param_type_name == "option" for o in (*p.opts, *p.secondary_opts)}


@pytest.mark.parametrize(("_place", "words"), list(commands()), ids=[place for place, _ in commands()])
def test_the_commands_of_a_page_exist(_place: str, words: list[str]) -> None:
    import typer.main

    from prunekit_cli.main import app

    if words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file(), words
        return
    if words[:2] == ["torchrun", "--nproc-per-node"]:
        words = ["prunekit", *words[words.index("prunekit_cli") + 1 :]]
    if words[0] != "prunekit":
        return  # pip, git, bash: not ours
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    assert (
        not rest or rest[0].startswith("-") or any(p.param_type_name == "argument" for p in command.params)
    ), words
    given = {word.partition("=")[0] for word in rest if word.startswith("--")}
    assert given <= options_of(command) | {"--help"}, words


def test_every_key_of_a_spec_has_a_meaning() -> None:
    schema = json_schema()
    lacking = [
        f"{owner}.{key}"
        for owner, part in [("spec", schema), *schema["$defs"].items()]
        for key, field in part.get("properties", {}).items()
        if key != "name" and len(field.get("description", "")) < 3
    ]
    assert not lacking


def test_every_component_says_what_it_is_and_is_on_the_page() -> None:
    page = GENERATE["components_page"]()
    manager = PluginManager()
    for kind in KINDS:
        for name in manager.names(kind):
            assert f"### `{name}` {{ #{kind}-{name} }}" in page
            ((_, component),) = manager.providers(kind, name)
            assert component.__doc__, name


def test_every_command_and_option_says_what_it_does() -> None:
    page = GENERATE["cli_page"]()
    assert "`--resume`" in page
    lacking = re.findall(r"^\| (`[^`]+`) \|\s*\|$", page, re.M)
    assert not lacking


def test_every_public_name_is_on_the_page_and_documented() -> None:
    import inspect

    named = {name for group in GENERATE["public_names"]().values() for name in group}
    assert named == set(pk.__all__) - {"__version__"}
    for name in named:
        thing = getattr(pk, name)
        if isinstance(thing, type) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), name


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / ".mkdocs.yml").read_text(encoding="utf-8"), re.M))
    there = {name_of(p) for p in PAGES if p.name != "README.md"} | set(GENERATE["PAGES"])
    assert listed == there
