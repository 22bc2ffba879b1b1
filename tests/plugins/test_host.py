"""The plugin host: loading, reporting, refusing and blocking, with fake distributions in ``tests/data``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pluggy
import pytest

import prunekit as pk
from prunekit import PluginError, PluginManager
from prunekit.plugins.host import Plugin

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put fake distributions on the path, and forget their modules afterwards."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def put(*folders: str | Path) -> None:
        for folder in folders:
            monkeypatch.syspath_prepend(str(DATA / folder))

    yield put
    for name in set(sys.modules) - before:
        if name.startswith("prunekit_fake"):
            del sys.modules[name]


def fake(folder: Path, name: str, code: str, entry: str | None = None, version: str = "1.0") -> Path:
    """Write a distribution with one module."""
    module = name.replace("-", "_")
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir(parents=True)
    info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    info.joinpath("entry_points.txt").write_text(f"[prunekit.plugins]\n{entry or name} = {module}\n")
    folder.joinpath(f"{module}.py").write_text(code)
    return folder


def found(manager: PluginManager, name: str) -> Plugin:
    (plugin,) = [p for p in manager.plugins if p.name == name]
    return plugin


class First(pk.Criterion):
    name = "mine"

    def saliency(self, weights: Any, statistics: Any) -> Any:
        return dict(weights)


class Second(First):
    pass


def module(components: Any, hook: str = "prunekit_register_criteria", name: str = "a_module") -> Any:
    return SimpleNamespace(__name__=name, **{hook: pk.hookimpl(lambda: components)})


# -- loading ----------------------------------------------------------------------------------------


def test_built_ins_come_through_entry_points_and_have_no_trouble() -> None:
    manager = PluginManager()
    built_in = [p for p in manager.plugins if p.distribution == "prunekit"]
    assert {p.module.split(".")[0] for p in built_in} == {"prunekit_plugins"}
    assert all(p.status == "loaded" and p.components and not p.trouble for p in built_in)
    assert {"lm", "magnitude", "obd", "qm", "random"} <= set(manager.names("criterion"))


def test_a_strangers_plugin_is_found_with_its_origin(install: Any) -> None:
    install("good")
    manager = PluginManager()
    plugin = found(manager, "fake_good")
    assert (plugin.status, plugin.source) == ("loaded", "prunekit-fake-good 1.2.3")
    assert manager.get("criterion", "fake").__module__ == "prunekit_fake_good"
    assert manager.get("scheduler", "quarters")().levels() == [0.25, 0.5]  # type: ignore[attr-defined]


def test_an_empty_host_has_nothing_until_something_is_registered() -> None:
    manager = PluginManager(load_entry_points=False)
    assert manager.plugins == []
    assert manager.names("criterion") == []
    plugin = manager.register(module([First]))
    assert plugin.source == "this process"
    assert manager.get("criterion", "mine") is First


def test_observing_hooks_of_every_plugin_are_called_with_the_arguments_that_they_take() -> None:
    seen: list[Any] = []

    class Short:
        @pk.hookimpl
        def prunekit_step_finished(self, step: Any) -> None:
            seen.append(step)

    class Long:
        @pk.hookimpl
        def prunekit_step_finished(self, run: Any, step: Any) -> None:
            seen.append((run, step))

        @pk.hookimpl
        def prunekit_run_started(self, run: Any) -> None:
            seen.append(run)

    manager = PluginManager(load_entry_points=False)
    manager.register(Short())
    manager.register(Long())
    manager.hook.prunekit_run_started(run="r")
    manager.hook.prunekit_step_finished(run="r", step="s")
    manager.hook.prunekit_run_finished(run="r")
    assert seen[0] == "r"
    assert sorted(map(str, seen[1:])) == ["('r', 's')", "s"]


def test_the_first_of_two_copies_of_a_distribution_on_the_path_counts(install: Any, tmp_path: Path) -> None:
    old = fake(tmp_path / "old", "prunekit-fake-twice", "", entry="stale", version="0.9")
    new = fake(tmp_path / "new", "prunekit_fake_twice", "", entry="fresh", version="1.1")
    install(old, new)
    names = [p.name for p in PluginManager().plugins]
    assert "fresh" in names
    assert "stale" not in names


# -- broken plugins ---------------------------------------------------------------------------------


def test_a_plugin_that_does_not_import_is_reported_and_the_others_go_on(install: Any) -> None:
    install("failing_import", "good")
    manager = PluginManager()
    plugin = found(manager, "fake_import")
    assert plugin.status == "broken"
    assert plugin.error == "does not import: ModuleNotFoundError: No module named 'no_such_dependency'"
    assert "prunekit_fake_import" in plugin.trace
    assert manager.get("criterion", "fake").name == "fake"
    assert manager.get("criterion", "qm").name == "qm"


def test_a_broken_plugin_is_named_where_it_might_have_had_what_is_missing(install: Any) -> None:
    install("failing_import")
    with pytest.raises(PluginError) as error:
        PluginManager().get("criterion", "fake_one")
    assert str(error.value).splitlines()[1] == (
        "  Plugin 'fake_import' of prunekit-fake-import 0.1 does not import: "
        "ModuleNotFoundError: No module named 'no_such_dependency'."
    )


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "1 +", "raise ValueError('two\\nlines')"])
def test_whatever_an_import_does_the_host_survives_with_one_line(
    install: Any, tmp_path: Path, code: str
) -> None:
    install(fake(tmp_path, "prunekit-fake-rude", code))
    plugin = found(PluginManager(), "prunekit-fake-rude")
    assert plugin.status == "broken"
    assert plugin.error.startswith("does not import: ")
    assert "\n" not in plugin.error


def test_a_misspelled_hook_is_told_with_the_nearest_name(install: Any) -> None:
    install("misspelled_hook")
    plugin = found(PluginManager(), "fake_misspelled")
    assert plugin.trouble.endswith(
        "implements a hook that does not exist: prunekit_register_criterions; "
        "did you mean 'prunekit_register_criteria'?"
    )


def test_a_hook_without_the_decorator_is_told(install: Any) -> None:
    install("missing_hookimpl")
    plugin = found(PluginManager(), "fake_undecorated")
    assert plugin.status == "broken"
    assert plugin.error.startswith(
        "defines prunekit_register_criteria without the decorator @prunekit.hookimpl"
    )


def test_a_decorated_function_that_is_no_hook_is_told_with_the_hooks_there_are() -> None:
    plugin = PluginManager(load_entry_points=False).register(module([], hook="xyz"))
    assert plugin.status == "broken"
    assert plugin.error.startswith("implements a hook that does not exist: xyz. The hooks are prunekit_")


def test_a_hook_that_is_imported_from_elsewhere_is_no_misspelling() -> None:
    here = SimpleNamespace(__name__="elsewhere", prunekit_helper=found)
    assert PluginManager(load_entry_points=False).register(here).status == "loaded"


def test_an_unknown_argument_of_a_hook_is_told() -> None:
    class Wrong:
        @pk.hookimpl
        def prunekit_step_finished(self, stp: Any) -> None: ...

    plugin = PluginManager(load_entry_points=False).register(Wrong())
    assert plugin.status == "broken"
    assert "stp" in plugin.error
    assert "\n" not in plugin.error


def test_a_broken_plugin_leaves_no_hook_behind() -> None:
    called = []

    class Half:
        @pk.hookimpl
        def prunekit_run_started(self, run: Any) -> None:
            called.append(run)

        @pk.hookimpl
        def prunekit_register_criteria(self) -> Any:
            raise RuntimeError("no")

    manager = PluginManager(load_entry_points=False)
    assert manager.register(Half()).error == "does not register: RuntimeError: no"
    manager.hook.prunekit_run_started(run=1)
    assert called == []


class NoName(pk.Criterion):
    def saliency(self, weights: Any, statistics: Any) -> Any: ...


class BadName(NoName):
    name = "with space"


class Abstract(pk.Criterion):
    name = "abstract"


class LooseOptions(First):
    Options = dict  # type: ignore[assignment]


class NamedOptions(First):
    class Options(pk.Options):
        name: str = ""


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ([First()], "must return subclasses of prunekit.Criterion, got <"),
        (["qm"], "must return subclasses of prunekit.Criterion, got 'qm'"),
        ([dict], "must return subclasses of prunekit.Criterion, got <class 'dict'>"),
        ([pk.Scheduler], "must return subclasses of prunekit.Criterion"),
        (First, "must return a list of classes"),
        (None, "must return a list of classes"),
        ("qm", "must return a list of classes"),
        ([NoName], "NoName needs a class attribute `name`"),
        ([BadName], "got 'with space'"),
        ([Abstract], "Abstract does not define saliency"),
        ([LooseOptions], "LooseOptions.Options must be a subclass of prunekit.Options"),
        ([NamedOptions], "NamedOptions.Options has name, which the engine takes itself"),
    ],
)
def test_a_hook_that_returns_something_else_is_told(components: Any, message: str) -> None:
    manager = PluginManager(load_entry_points=False)
    plugin = manager.register(module(components))
    assert plugin.status == "broken"
    assert plugin.error.startswith("does not register: TypeError: ")
    assert message in plugin.error
    assert manager.names("criterion") == []


# -- names ------------------------------------------------------------------------------------------


def test_an_unknown_name_is_told_with_the_nearest_and_all_others() -> None:
    with pytest.raises(
        PluginError, match=r"^unknown criterion 'qn'; did you mean 'qm'\? Available: .*lm, .*qm"
    ):
        PluginManager().get("criterion", "qn")


def test_an_unknown_name_that_resembles_nothing() -> None:
    with pytest.raises(PluginError, match=r"^unknown criterion 'x'\. Available: none\.$"):
        PluginManager(load_entry_points=False).get("criterion", "x")


def test_a_name_means_one_thing_per_kind() -> None:
    with pytest.raises(PluginError, match="unknown scheduler 'qm'"):
        PluginManager().get("scheduler", "qm")


def test_two_plugins_with_one_name_are_refused_naming_both(install: Any) -> None:
    install("duplicate_name")
    manager = PluginManager()
    with pytest.raises(PluginError) as error:
        manager.get("criterion", "qm")
    assert str(error.value).splitlines() == [
        "criterion 'qm' is provided twice:",
        f"  - prunekit_plugins.criteria.qm.QuadraticModel   (plugin 'criteria' of prunekit {pk.__version__})",
        "  - prunekit_fake_duplicate.AnotherQM   (plugin 'fake_duplicate' of prunekit-fake-duplicate 0.3)",
        "Uninstall one, or block one for this run with `--block fake_duplicate`.",
    ]
    assert manager.get("criterion", "lm").name == "lm"


@pytest.mark.parametrize("name", ["fake_duplicate", "prunekit_fake_duplicate", "prunekit-fake-duplicate"])
def test_blocking_by_plugin_module_or_distribution_ends_a_conflict(install: Any, name: str) -> None:
    install("duplicate_name")
    manager = PluginManager(block=[name])
    assert manager.get("criterion", "qm").__module__ == "prunekit_plugins.criteria.qm"
    assert found(manager, "fake_duplicate").status == "blocked"
    assert "prunekit_fake_duplicate" not in sys.modules


def test_the_built_in_can_be_blocked_too(install: Any) -> None:
    install("duplicate_name")
    manager = PluginManager(block=["prunekit_plugins.criteria"])
    assert manager.get("criterion", "qm").__module__ == "prunekit_fake_duplicate"


def test_the_advice_blocks_one_plugin_only_though_both_are_called_alike(install: Any, tmp_path: Path) -> None:
    code = DATA.joinpath("duplicate_name/prunekit_fake_duplicate/__init__.py").read_text()
    install(fake(tmp_path, "a-prunekit-fake", code, entry="criteria"))
    with pytest.raises(PluginError, match=r"block one for this run with `--block a_prunekit_fake`\.$"):
        PluginManager().get("criterion", "qm")


def test_the_advice_for_two_strangers_names_both() -> None:
    manager = PluginManager(load_entry_points=False)
    manager.register(module([First]), "one")
    manager.register(module([Second], name="b_module"), "two")
    with pytest.raises(PluginError, match=r"`--block one` or `--block two`\.$"):
        manager.get("criterion", "mine")


def test_one_plugin_with_one_name_twice_is_its_authors_matter() -> None:
    manager = PluginManager(load_entry_points=False)
    manager.register(module([First, Second]), "one")
    with pytest.raises(PluginError, match="All come from plugin 'one': its author must rename one"):
        manager.get("criterion", "mine")


def test_what_is_blocked_is_named_where_it_might_have_had_what_is_missing() -> None:
    with pytest.raises(
        PluginError, match=r"Available: none\.\n  Plugin 'criteria' of prunekit \S+ is blocked\.$"
    ):
        PluginManager(block=["criteria"]).get("criterion", "qm")


def test_blocking_what_is_not_there_is_refused_with_what_there_is() -> None:
    with pytest.raises(
        PluginError, match=r"cannot block 'criterai': .*; did you mean 'criteria'\? Installed: .*losses"
    ):
        PluginManager(block=["criterai"])


def test_a_broken_plugin_can_be_blocked(install: Any) -> None:
    install("failing_import")
    assert found(PluginManager(block=["fake_import"]), "fake_import").status == "blocked"


def test_pluggys_own_marker_works_too() -> None:
    marked = SimpleNamespace(
        __name__="m", prunekit_register_criteria=pluggy.HookimplMarker("prunekit")(lambda: [First])
    )
    assert PluginManager(load_entry_points=False).register(marked).components == [First]


def test_listing_the_built_ins_imports_no_torch() -> None:
    code = "import sys, prunekit; prunekit.PluginManager(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_a_module_that_is_registered_twice_is_told_so_and_supplies_its_components_once() -> None:
    class Twice:
        @pk.hookimpl
        def prunekit_register_schedulers(self) -> list[type[pk.Scheduler]]:
            return []

    manager, module = pk.PluginManager(load_entry_points=False), Twice()
    assert manager.register(module).status == "loaded"
    again = manager.register(module)
    assert (again.status, again.error) == ("broken", "is registered already: Twice")
