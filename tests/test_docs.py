"""Every hook is documented with its exact signature and its example, and tested; the pages' code works."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prunekit import PluginManager
from prunekit.plugins import hookspecs
from prunekit.plugins.kinds import KINDS
from prunekit.spec import text as yaml

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("prunekit_"))
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```", PAGE, re.M | re.S)]


def signature(hook: str) -> str:
    """As written in the source, without the colon."""
    found = re.search(r"^(def .*?):$", inspect.getsource(getattr(hookspecs, hook)), re.M)
    assert found is not None
    return found[1]


def example(hook: str) -> str:
    _, _, code = (inspect.getdoc(getattr(hookspecs, hook)) or "").partition("Example::\n")
    return textwrap.dedent(code).strip() + "\n"


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_its_exact_signature(hook: str) -> None:
    assert f"\n    {signature(hook)}\n" in PAGE


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_the_example_of_its_docstring(hook: str) -> None:
    assert f"```python\n{example(hook)}```\n" in PAGE


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_test(hook: str) -> None:
    others = [p for p in TESTS.rglob("test_*.py") if p != Path(__file__)]
    assert any(hook in path.read_text(encoding="utf-8") for path in others)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_docstring_says_when_it_is_called_and_since_when(hook: str) -> None:
    doc = inspect.getdoc(getattr(hookspecs, hook)) or ""
    assert doc.startswith("Called ")
    assert re.search(r"Since \d+\.\d+\.", doc.splitlines()[0])


def test_every_registering_hook_belongs_to_a_kind() -> None:
    assert {kind.hook for kind in KINDS.values()} == {
        hook for hook in HOOKS if hook.startswith("prunekit_register_")
    }


def test_the_page_names_no_hook_that_does_not_exist() -> None:
    assert set(re.findall(r"\bprunekit_(?:register|run|step)_\w+", PAGE)) == set(HOOKS)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_pages_code_runs_and_registers(number: int) -> None:
    module = ModuleType("documented")
    exec(compile(BLOCKS[number], f"docs/plugins.md, block {number}", "exec"), vars(module))
    if "@pk.hookimpl\ndef " in BLOCKS[number]:
        plugin = PluginManager(load_entry_points=False).register(module)
        assert plugin.status == "loaded", plugin.error


def test_the_pages_curvy_criterion_keeps_the_contract(tmp_path: Path) -> None:
    import torch

    import prunekit as pk

    (code,) = [block for block in BLOCKS if "class Curvy" in block]
    names: dict[str, Any] = {}
    exec(code, names)
    model = torch.nn.Linear(5, 3, dtype=torch.float64)
    batches = [(torch.randn(9, 5, dtype=torch.float64), torch.randint(3, (9,)))]
    found = pk.saliency(model, batches, names["Curvy"]())
    torch.testing.assert_close(found["weight"], pk.saliency(model, batches, "obd")["weight"])


def test_the_architecture_names_every_room_that_exists_and_none_that_does_not() -> None:
    core = TESTS.parent / "core" / "prunekit"
    page = (TESTS.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", page, re.M)
    named = {name.rstrip("/") for row in rows for name in re.findall(r"`([\w/]+)`", row)}
    there = {p.stem for p in core.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert named == there - {"__init__", "__main__", "version"}
    order = [name.rstrip("/") for row in rows for name in re.findall(r"`([\w/]+)`", row)]
    layers = (TESTS.parent / "pyproject.toml").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^layers = \[\n    \"api(.*?)^\]", layers, re.M | re.S)
    contract = re.findall(r"\w+", "api" + listed)[::-1]
    assert sorted(order) == sorted(contract)
    beside_each_other = set(
        ["component", "records", "seeds", "units", "visible", "lending", "drawing", "ranks"]
    )
    beside_each_other |= set(["testing", "api", "reproduction", "data", "executor"])
    assert [n for n in order if n not in beside_each_other] == [
        n for n in contract if n not in beside_each_other
    ]
    for folder in ("_linalg", "_curvature", "_selection"):
        assert f"`{folder}`" in page
        assert (TESTS.parent / "plugins" / "prunekit_plugins" / folder / "__init__.py").exists()


def test_the_code_about_transformers_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="needs prunekit[hf]")
    pytest.importorskip("accelerate", reason="callbacks of the Trainer need it")
    monkeypatch.chdir(tmp_path)
    page = (TESTS.parent / "docs" / "huggingface.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.M | re.S))
    module = ModuleType("documented")

    exec(compile(code, "docs/huggingface.md", "exec"), vars(module))

    network = vars(module)["again"]
    assert not any(bool(network.get_parameter(n)[~m].any()) for n, m in vars(module)["pruning"].masks.items())


def test_the_spec_about_transformers_is_the_examples_own() -> None:
    page = (TESTS.parent / "docs" / "huggingface.md").read_text(encoding="utf-8")
    shown = yaml.parse(re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)[0], "page").data
    own = yaml.parse((TESTS.parent / "examples" / "llama_bytes" / "prune.yaml").read_text(), "example").data
    assert shown == {key: value for key, value in own.items() if key not in ("name", "memory")}
