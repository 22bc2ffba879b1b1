"""The hooks that plugins may implement.

A plugin is a module named by an entry point of the group ``prunekit.plugins``. It marks functions with
``@prunekit.hookimpl``; a function may take fewer arguments than the hook passes. The registering hooks
are called once, when the plugin is loaded, and return a list (possibly empty) of component classes; the
engine decides when to build them. Results of several plugins are joined; two classes of one kind with
one name are refused, naming both, as soon as that name is asked for. Load order never matters.

The observing hooks are called by every ``prunekit run`` and ``pk.run``, after the built-in recorders.
They get plain data, cannot change the run, and an exception in one fails the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from prunekit.components import (
        Criterion,
        Dataset,
        Estimator,
        Loss,
        Model,
        Probe,
        Recorder,
        Scheduler,
        Selector,
    )
    from prunekit.engine.events import RunView, StepRecord

PROJECT = "prunekit"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def prunekit_register_models() -> list[type[Model]]:  # type: ignore[empty-body]
    """Called once at load; return model classes. Since 0.1.

    Example::

        class Perceptron(pk.Model):
            name = "perceptron"
            def build(self, data):
                return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(data.features, data.outputs))

        @pk.hookimpl
        def prunekit_register_models(): return [Perceptron]
    """


@hookspec
def prunekit_register_datasets() -> list[type[Dataset]]:  # type: ignore[empty-body]
    """Called once at load; return data set classes. Since 0.1.

    Example::

        class Coins(pk.Dataset):
            name = "coins"
            def load(self, seed):
                x = torch.randn(90, 4); y = (x.sum(1) > 0).long()
                return pk.Splits(train=pk.Split(x[:60], y[:60]), test=pk.Split(x[60:], y[60:]))

        @pk.hookimpl
        def prunekit_register_datasets(): return [Coins]
    """


@hookspec
def prunekit_register_losses() -> list[type[Loss]]:  # type: ignore[empty-body]
    """Called once at load; return task losses. Since 0.1.

    Example::

        class Poisson(pk.Loss):
            name = "poisson"
            def total(self, outputs, targets): return (outputs.exp() - targets * outputs).sum()
            def normaliser(self, outputs, targets): return float(targets.numel())
            def ggn_factor(self, outputs, targets):
                for k in range(outputs[0].numel()):
                    column = torch.zeros_like(outputs)
                    column.flatten(1)[:, k] = (outputs.flatten(1)[:, k] / 2).exp()
                    yield column

        @pk.hookimpl
        def prunekit_register_losses(): return [Poisson]
    """


@hookspec
def prunekit_register_criteria() -> list[type[Criterion]]:  # type: ignore[empty-body]
    """Called once at load; return pruning criteria. Since 0.1.

    Example::

        class Squared(pk.Criterion):
            name, requires = "squared", frozenset({"gradient"})
            def saliency(self, weights, statistics):
                return {k: (w * statistics["gradient"][k]) ** 2 for k, w in weights.items()}

        @pk.hookimpl
        def prunekit_register_criteria(): return [Squared]
    """


@hookspec
def prunekit_register_schedulers() -> list[type[Scheduler]]:  # type: ignore[empty-body]
    """Called once at load; return sparsity schedulers. Since 0.1.

    Example::

        class Halves(pk.Scheduler):
            name = "halves"
            class Options(pk.Options): steps: int = 3
            def levels(self): return [1 - 0.5 ** (i + 1) for i in range(self.options.steps)]

        @pk.hookimpl
        def prunekit_register_schedulers(): return [Halves]
    """


@hookspec
def prunekit_register_statistics() -> list[type[Estimator]]:  # type: ignore[empty-body]
    """Called once at load; return estimators of statistics that criteria can require. Since 0.1.

    Example::

        class Signs(pk.Estimator):
            name, needs_data = "signs", False
            def start(self, problem): self.parameters = problem.parameters
            def finish(self, normaliser): return {k: p.detach().sign() for k, p in self.parameters.items()}

        @pk.hookimpl
        def prunekit_register_statistics(): return [Signs]
    """


@hookspec
def prunekit_register_selectors() -> list[type[Selector]]:  # type: ignore[empty-body]
    """Called once at load; return selectors, which turn saliencies into masks. Since 0.1.

    Example::

        class FirstOnly(pk.Selector):
            name = "first_only"
            def select(self, saliency, masks, budget):
                first = next(iter(masks)); new = dict(masks); new[first] = masks[first].clone()
                order = saliency[first].masked_fill(~masks[first], -torch.inf).flatten().argsort(stable=True)
                new[first].view(-1)[order[:budget]] = False
                return new

        @pk.hookimpl
        def prunekit_register_selectors(): return [FirstOnly]
    """


@hookspec
def prunekit_register_probes() -> list[type[Probe]]:  # type: ignore[empty-body]
    """Called once at load; return loss-landscape probes. Since 0.1.

    Example::

        class Norms(pk.Probe):
            name = "norms"
            def measure(self, landscape, generator):
                norm = sum(float((w ** 2).sum()) for w in landscape.weights("pruned").values()) ** 0.5
                return pk.ProbeRecord({"all": {"norm": pk.Series([norm], ("network",))}}, {"norm": norm})

        @pk.hookimpl
        def prunekit_register_probes(): return [Norms]
    """


@hookspec
def prunekit_register_recorders() -> list[type[Recorder]]:  # type: ignore[empty-body]
    """Called once at load; return recorders. Since 0.1.

    Example::

        class Lines(pk.Recorder):
            name = "lines"
            def step_finished(self, run, step):
                print(step.sparsity, step.delta_loss, file=sys.stderr)

        @pk.hookimpl
        def prunekit_register_recorders(): return [Lines]
    """


@hookspec
def prunekit_run_started(run: RunView) -> None:
    """Called once when a run starts or is resumed, before any work. ``run`` is a read-only view. Since 0.1.

    Example::

        @pk.hookimpl
        def prunekit_run_started(run): print("pruning", run.spec["name"], file=sys.stderr)
    """


@hookspec
def prunekit_step_finished(run: RunView, step: StepRecord) -> None:
    """Called after every pruning step, once it is recorded; ``step`` is its row of the table. Since 0.1.

    Example::

        @pk.hookimpl
        def prunekit_step_finished(step): print(step.step, step.delta_loss, file=sys.stderr)
    """


@hookspec
def prunekit_run_finished(run: RunView) -> None:
    """Called once when a run ends, also when it fails; ``run.status`` says how it ended. Since 0.1.

    Example::

        @pk.hookimpl
        def prunekit_run_finished(run): print(run.status, file=sys.stderr)
    """


REGISTERING = {
    "prunekit_register_models": "model",
    "prunekit_register_datasets": "dataset",
    "prunekit_register_losses": "loss",
    "prunekit_register_criteria": "criterion",
    "prunekit_register_schedulers": "scheduler",
    "prunekit_register_statistics": "statistic",
    "prunekit_register_selectors": "selector",
    "prunekit_register_probes": "probe",
    "prunekit_register_recorders": "recorder",
}
"""Registering hook to the kind of component that it returns."""
