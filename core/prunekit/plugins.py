"""The plugin host: find, load, check, list and look up plugins."""

from __future__ import annotations

import difflib
import inspect
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions
from types import ModuleType
from typing import Any

import pluggy

from prunekit import hookspecs
from prunekit.components import KINDS, Component
from prunekit.errors import PluginError
from prunekit.hookspecs import PROJECT, REGISTERING

GROUP = "prunekit.plugins"


@dataclass
class Plugin:
    """One entry point: where it comes from, what it supplies, and what went wrong."""

    name: str
    module: str
    distribution: str = ""
    version: str = ""
    status: str = "loaded"  # loaded, blocked, broken
    error: str = ""
    trace: str = ""
    components: list[type[Component]] = field(default_factory=list)

    @property
    def source(self) -> str:
        """Distribution and version, as shown to users."""
        return f"{self.distribution} {self.version}".strip() or "this process"

    def provides(self, component: type[Component]) -> str:
        """Where a component of this plugin is defined."""
        return f"{component.__module__}.{component.__qualname__}"


class PluginManager:
    """Loads plugins and answers which component has which name.

    A plugin that fails to import, or that implements a hook that does not exist, is reported and left
    out; the others go on. Nothing is raised before a name that the broken plugin might have supplied is
    asked for.

    Args:
        load_entry_points: Look for installed plugins; ``False`` gives an empty host for tests.
        block: Names of plugins, modules or distributions to leave out.
    """

    def __init__(self, load_entry_points: bool = True, block: Iterable[str] = ()) -> None:
        self._pluggy = pluggy.PluginManager(PROJECT)
        self._pluggy.add_hookspecs(hookspecs)
        self._blocked = set(block)
        self.plugins: list[Plugin] = []
        if load_entry_points:
            for distribution, entry in _entry_points():
                self._load(distribution, entry)
        unknown = self._blocked - {n for p in self.plugins for n in _names(p)}
        if unknown:
            raise PluginError(
                f"cannot block {_join(unknown)}: no such plugin. "
                f"Installed: {_join(p.name for p in self.plugins)}."
            )

    @property
    def hook(self) -> Any:
        """Pluggy's hook caller, for the observing hooks."""
        return self._pluggy.hook

    def register(self, module: ModuleType | object, name: str | None = None) -> Plugin:
        """Register a module by hand, as an entry point would."""
        module_name = getattr(module, "__name__", type(module).__name__)
        plugin = Plugin(name or module_name, module_name)
        self.plugins.append(plugin)
        self._register(plugin, module)
        return plugin

    def _load(self, distribution: Distribution, entry: EntryPoint) -> None:
        plugin = Plugin(
            entry.name, entry.value, distribution.metadata["Name"] or "", distribution.version or ""
        )
        self.plugins.append(plugin)
        if _names(plugin) & self._blocked:
            plugin.status = "blocked"
            return
        try:
            module = entry.load()
        except Exception as error:  # a stranger's module may raise anything; it must not stop the others
            _mark_broken(plugin, f"does not import: {type(error).__name__}: {error}")
            return
        self._register(plugin, module)

    def _register(self, plugin: Plugin, module: Any) -> None:
        wrong = self._misspelled(module)
        if wrong:
            _mark_broken(plugin, wrong, trace=False)
            return
        key = f"{plugin.distribution}:{plugin.name}:{plugin.module}"
        try:
            self._pluggy.register(module, name=key)
            self._pluggy.check_pending()
            for hook, kind in REGISTERING.items():
                implementation = getattr(module, hook, None)
                if implementation is not None and _is_implementation(implementation):
                    plugin.components += [_checked(c, kind, hook) for c in implementation() or ()]
        except Exception as error:
            if self._pluggy.has_plugin(key):
                self._pluggy.unregister(name=key)
            plugin.components.clear()
            _mark_broken(plugin, f"does not register: {type(error).__name__}: {error}")

    def _misspelled(self, module: Any) -> str:
        known = [n for n in dir(hookspecs) if n.startswith("prunekit_")]
        for name, value in inspect.getmembers(module, callable):
            looks_like_hook = name.startswith("prunekit_") and getattr(value, "__module__", None) == getattr(
                module, "__name__", None
            )
            if name in known:
                if looks_like_hook and not _is_implementation(value):
                    return f"{name} lacks the @prunekit.hookimpl decorator, so it would never be called"
            elif _is_implementation(value) or looks_like_hook:
                return f"implements a hook that does not exist: {name}{did_you_mean(name, known)}"
        return ""

    def names(self, kind: str) -> list[str]:
        """All names of a kind, sorted."""
        return sorted({c.name for p in self.plugins for c in p.components if c.kind == kind})

    def providers(self, kind: str, name: str) -> list[tuple[Plugin, type[Component]]]:
        """Every plugin that supplies this name; more than one is a conflict."""
        return [(p, c) for p in self.plugins for c in p.components if c.kind == kind and c.name == name]

    def get(self, kind: str, name: str) -> type[Component]:
        """Return the component class of that kind and name.

        Raises:
            PluginError: If there is none (with the nearest names and any plugin that failed to load), or
                if several plugins supply it (naming all).
        """
        found = self.providers(kind, name)
        if len(found) == 1:
            return found[0][1]
        if not found:
            raise PluginError(self._unknown(kind, name))
        lines = [f"{kind} {name!r} is provided {'twice' if len(found) == 2 else f'{len(found)} times'}:"]
        lines += [f"  - {p.provides(c)}   (plugin {p.name!r} of {p.source})" for p, c in found]
        lines.append(f"Uninstall one, or block one for this run with `--block {found[-1][0].name}`.")
        raise PluginError("\n".join(lines))

    def _unknown(self, kind: str, name: str) -> str:
        names = self.names(kind)
        text = f"unknown {kind} {name!r}{did_you_mean(name, names)}. Available: {_join(names)}."
        for plugin in self.plugins:
            if plugin.status == "broken":
                text += f" Plugin {plugin.name!r} of {plugin.source} {plugin.error}."
            elif plugin.status == "blocked":
                text += f" Plugin {plugin.name!r} of {plugin.source} is blocked."
        return text


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest name, or nothing."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


@cache
def default_manager() -> PluginManager:
    """The host with everything that is installed, loaded once per process."""
    return PluginManager()


def _entry_points() -> list[tuple[Distribution, EntryPoint]]:
    seen: set[tuple[str, str, str]] = set()
    found: list[tuple[Distribution, EntryPoint]] = []
    for distribution in distributions():
        for entry in distribution.entry_points:
            # One distribution can be listed twice (say, through two paths that lead to one folder).
            key = (distribution.metadata["Name"] or "", entry.name, entry.value)
            if entry.group == GROUP and key not in seen:
                seen.add(key)
                found.append((distribution, entry))
    return sorted(found, key=lambda pair: (pair[0].metadata["Name"] or "", pair[1].name))


def _names(plugin: Plugin) -> set[str]:
    return {plugin.name, plugin.module, plugin.distribution} - {""}


def _mark_broken(plugin: Plugin, error: str, trace: bool = True) -> None:
    plugin.status = "broken"
    plugin.error = error
    plugin.trace = traceback.format_exc() if trace and sys.exc_info()[0] else ""


def _is_implementation(value: Any) -> bool:
    # pluggy marks implementations with an attribute named after the project.
    return getattr(value, f"{PROJECT}_impl", None) is not None


def _checked(component: Any, kind: str, hook: str) -> type[Component]:
    base = KINDS[kind]
    if not (inspect.isclass(component) and issubclass(component, base)):
        raise TypeError(f"{hook} must return subclasses of prunekit.{base.__name__}, got {component!r}")
    if not isinstance(getattr(component, "name", None), str) or not component.name:
        raise TypeError(f"{component.__qualname__} needs a class attribute `name`, a string")
    if inspect.isabstract(component):
        missing = ", ".join(sorted(getattr(component, "__abstractmethods__", ())))
        raise TypeError(f"{component.__qualname__} does not define {missing}")
    return component


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
