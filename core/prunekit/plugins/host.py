"""The plugin host: find, load, check, list and look up plugins."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
import traceback
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

import pluggy

from prunekit.component import Component, Options
from prunekit.errors import PluginError
from prunekit.plugins import hookspecs
from prunekit.plugins.discovery import Entry, installed, normal
from prunekit.plugins.hookspecs import PROJECT
from prunekit.plugins.kinds import KINDS
from prunekit.pruning import selector
from prunekit.pruning.criterion import Criterion, old_form
from prunekit.pruning.scheduler import Scheduler
from prunekit.pruning.selector import Selector

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

    @property
    def trouble(self) -> str:
        """One line on what keeps this plugin from working; empty if it works."""
        if self.status == "loaded":
            return ""
        text = f"Plugin {self.name!r} of {self.source} {self.error or 'is blocked'}"
        return text if text.endswith(("?", ".")) else f"{text}."

    @property
    def names(self) -> frozenset[str]:
        """What blocks it: the plugin's name, its module, its distribution."""
        return frozenset({self.name, self.module, self.module.partition(":")[0], self.distribution} - {""})

    def provides(self, component: type[Component]) -> str:
        """Where a component of this plugin is defined."""
        return f"{component.__module__}.{component.__qualname__}"


class PluginManager:
    """Loads plugins and answers which component has which name.

    A plugin that fails to import, or that implements a hook that does not exist, is reported and left
    out; the others keep working. Nothing is raised until a name is requested that the broken plugin might
    have supplied.

    Args:
        load_entry_points: Look for installed plugins; ``False`` gives an empty host for tests.
        block: Names of plugins, modules or distributions to leave out.
        code: Whether a spec may name Python to run: ``False`` imports no plugin but the built-in ones, and rejects
            components with :attr:`~prunekit.component.Component.runs_code`.

    Raises:
        PluginError: If nothing has a name given in ``block``.
    """

    def __init__(
        self, load_entry_points: bool = True, block: Iterable[str] = (), *, code: bool = True
    ) -> None:
        self._code = code
        self._pluggy = pluggy.PluginManager(PROJECT)
        self._pluggy.add_hookspecs(hookspecs)
        self._blocked = {normal(name): name for name in block}
        self.plugins: list[Plugin] = []
        if load_entry_points:
            for entry in installed(GROUP):
                self._load(entry)
        known = {normal(n): n for p in self.plugins for n in p.names}
        unknown = [name for key, name in self._blocked.items() if key not in known]
        if unknown:
            near = did_you_mean(unknown[0], known.values()) if len(unknown) == 1 else ""
            raise PluginError(
                f"cannot block {', '.join(map(repr, sorted(unknown)))}: no such plugin, module or "
                f"distribution{near or '.'} Installed: {self._installed()}."
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

    def _installed(self) -> str:
        groups: dict[str, list[str]] = {}
        for plugin in self.plugins:
            groups.setdefault(plugin.source, []).append(plugin.name)
        return "; ".join(f"{_join(names)} ({source})" for source, names in groups.items()) or "none"

    def _load(self, entry: Entry) -> None:
        plugin = Plugin(entry.name, entry.module, entry.distribution, entry.version)
        self.plugins.append(plugin)
        if any(normal(name) in self._blocked for name in plugin.names):
            plugin.status = "blocked"
            return
        if not self._code and normal(plugin.distribution) != PROJECT:
            plugin.status, plugin.error = "blocked", "is not built in, and only built-in code may run"
            return
        if entry.unreadable:
            _mark_broken(plugin, entry.unreadable)
            return
        with redirect_stdout(sys.stderr):  # standard output is for results
            try:
                module = entry.load()
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a stranger's module may do anything, even exit
                _mark_broken(plugin, f"does not import: {_text(error)}")
                return
            self._register(plugin, module)

    def _register(self, plugin: Plugin, module: Any) -> None:
        key = f"{plugin.distribution}:{plugin.name}:{plugin.module}"
        try:
            wrong = _misspelled(module)
            if wrong:
                _mark_broken(plugin, wrong)
                return
            if self._pluggy.is_registered(module):
                _mark_broken(plugin, f"is registered already: {plugin.module}")
                return
            self._pluggy.register(module, name=key)
            self._pluggy.check_pending()
            for kind, known in KINDS.items():
                hook = known.hook
                implementation = getattr(module, hook, None)
                if implementation is not None and _is_implementation(implementation):
                    plugin.components += _returned(implementation(), kind, hook)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if self._pluggy.has_plugin(key):
                self._pluggy.unregister(name=key)
            plugin.components.clear()
            _mark_broken(plugin, f"does not register: {_text(error)}")

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
        providers = self.providers(kind, name)
        if len(providers) == 1:
            cls = providers[0][1]
            if cls.runs_code and not self._code:
                raise PluginError(
                    f"{kind} {name!r} runs Python that the spec names, and only built-in code may run"
                )
            return cls
        if not providers:
            raise PluginError(self._unknown(kind, name))
        lines = [
            f"{kind} {name!r} is provided {'twice' if len(providers) == 2 else f'{len(providers)} times'}:"
        ]
        lines += [f"  - {p.provides(c)}   (plugin {p.name!r} of {p.source})" for p, c in providers]
        lines.append(self._cure([p for p, _ in providers]))
        raise PluginError("\n".join(lines))

    def versions(self, components: Iterable[type[Component]]) -> dict[str, str]:
        """The distributions whose plugins supply these components, each with its version."""
        wanted = set(components)
        versions = {p.distribution: p.version for p in self.plugins if wanted.intersection(p.components)}
        return {name: versions[name] for name in sorted(versions) if name}

    def _cure(self, providers: list[Plugin]) -> str:
        """What to do about a conflict; nobody is told to block the built-ins."""
        strangers = [p for p in providers if p.distribution != PROJECT] or providers
        if len({id(p) for p in providers}) == 1:
            return f"All come from plugin {providers[0].name!r}: its author must rename one."
        flags: list[str] = []
        for plugin in strangers:
            # The shortest name that means this plugin alone.
            names = [plugin.name, plugin.module.partition(":")[0], plugin.module]
            name = next((n for n in names if sum(n in p.names for p in self.plugins) == 1), plugin.module)
            if f"`--block {name}`" not in flags:
                flags.append(f"`--block {name}`")
        return f"Uninstall one, or block one for this run with {' or '.join(flags)}."

    def _unknown(self, kind: str, name: str) -> str:
        names = self.names(kind)
        lines = [f"unknown {kind} {name!r}{did_you_mean(name, names) or '.'} Available: {_join(names)}."]
        return "\n  ".join(lines + [p.trouble for p in self.plugins if p.trouble])


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest name, or nothing."""
    folded = {known.casefold(): known for known in names}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    return f"; did you mean {folded[near[0]]!r}?" if near else ""


def manager_for(block: Iterable[str], code: bool = True) -> PluginManager:
    """The host for a command: the default one, unless something is to be left out."""
    blocked = list(block)
    return PluginManager(block=blocked, code=code) if blocked or not code else default_manager()


@cache
def default_manager() -> PluginManager:
    """The host with everything that is installed, loaded once per process."""
    return PluginManager()


def _mark_broken(plugin: Plugin, error: str) -> None:
    plugin.status = "broken"
    plugin.error = error
    plugin.trace = traceback.format_exc() if sys.exc_info()[0] else ""


def _text(error: BaseException) -> str:
    """An exception in one line; pluggy's go over several."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _misspelled(module: object) -> str:
    """What is wrong with a module's hooks; pluggy would take some of it for no hook at all."""
    known = [n for n in dir(hookspecs) if n.startswith(f"{PROJECT}_")]
    for name, value in inspect.getmembers(module, callable):
        here = getattr(value, "__module__", None) == getattr(module, "__name__", None)
        looks_like_hook = name.startswith(f"{PROJECT}_") and here
        if name in known:
            if looks_like_hook and not _is_implementation(value):
                return f"defines {name} without the decorator @prunekit.hookimpl, so it would never be called"
        elif _is_implementation(value) or looks_like_hook:
            near = did_you_mean(name, known) or f". The hooks are {_join(known)}"
            return f"implements a hook that does not exist: {name}{near}"
    return ""


def _is_implementation(value: object) -> bool:
    # pluggy marks implementations with an attribute named after the project.
    return isinstance(getattr(value, f"{PROJECT}_impl", None), dict)


def _returned(components: Any, kind: str, hook: str) -> list[type[Component]]:
    if components is None or isinstance(components, str | type) or not isinstance(components, Iterable):
        raise TypeError(f"{hook} must return a list of classes, got {components!r}")
    return [_checked(component, kind, hook) for component in components]


def _checked(component: object, kind: str, hook: str) -> type[Component]:
    base = KINDS[kind].base
    if not (inspect.isclass(component) and issubclass(component, base)):
        raise TypeError(f"{hook} must return subclasses of prunekit.{base.__name__}, got {component!r}")
    name = getattr(component, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise TypeError(
            f"{component.__qualname__} needs a class attribute `name`, a word as specs write it; got {name!r}"
        )
    if inspect.isabstract(component):
        missing = ", ".join(sorted(getattr(component, "__abstractmethods__", ())))
        raise TypeError(f"{component.__qualname__} does not define {missing}")
    wrong = _incomplete(component)
    if wrong:
        raise TypeError(f"{component.__qualname__} {wrong}")
    options = component.Options
    if not (inspect.isclass(options) and issubclass(options, Options)):
        raise TypeError(f"{component.__qualname__}.Options must be a subclass of prunekit.Options")
    taken = {"name", *KINDS[kind].keys} & {f.alias or k for k, f in options.model_fields.items()}
    if taken:
        raise TypeError(f"{component.__qualname__}.Options has {_join(taken)}, which the engine takes itself")
    return component


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _incomplete(component: type[Component]) -> str:
    """What a class lacks that Python's abstract methods cannot say."""
    if issubclass(component, Criterion):
        if component.saliency is Criterion.saliency and component.propose is Criterion.propose:
            return old_form(component) or "does not define saliency (or propose)"
        return old_form(component)
    if issubclass(component, Selector):
        return selector.old_form(component)
    if (
        issubclass(component, Scheduler)
        and component.levels is Scheduler.levels
        and component.next is Scheduler.next
    ):
        return "does not define levels (or next and accept)"
    return ""
