"""The hooks that plugins may implement.

A plugin is a module named by an entry point of the group ``prunekit.plugins``. It marks functions with
``@prunekit.hookimpl``; a function may take fewer arguments than the hook passes.

The registering hooks are called by :class:`prunekit.PluginManager`, once, when it loads the plugin, and
return a list (possibly empty) of classes: each a subclass of its kind's base class, with a ``name``. The
engine decides when to build them. The lists of all plugins are joined; two classes of one kind with the
same name are rejected as soon as that name is requested, naming both. Load order never matters.

The observing hooks are called by every ``prunekit run`` and ``pk.run``, after the recorders, for all
plugins in no guaranteed order. Their arguments may be kept but must not be changed, their return value is
ignored, and an exception in one fails the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from prunekit.data import Dataset, Model
    from prunekit.executor import Executor
    from prunekit.losses.base import Loss
    from prunekit.losses.metric import Metric
    from prunekit.observing.probe import Probe
    from prunekit.observing.recorder import Recorder
    from prunekit.pruning.criterion import Criterion
    from prunekit.pruning.scheduler import Scheduler
    from prunekit.pruning.selector import Selector
    from prunekit.records import RunView, StepRecord
    from prunekit.statistics.base import Estimator

PROJECT = "prunekit"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def prunekit_register_models() -> list[type[Model]]:
    """Called once at load; return model classes, which build a network that fits the data. Since 0.1.

    Example::

        import torch
        import prunekit as pk

        class Perceptron(pk.Model):
            name = "perceptron"

            def build(self, data):
                return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(data.features, data.outputs))

        @pk.hookimpl
        def prunekit_register_models():
            return [Perceptron]
    """
    raise NotImplementedError


@hookspec
def prunekit_register_datasets() -> list[type[Dataset]]:
    """Called once at load; return data set classes, which load whole splits. Since 0.1.

    Example::

        import torch
        import prunekit as pk

        class Halfspace(pk.Dataset):
            name = "halfspace"

            def load(self, seed):
                x = torch.randn(90, 4, generator=torch.Generator().manual_seed(seed))
                y = (x.sum(1) > 0).long()
                return pk.Splits(train=pk.Split(x[:60], y[:60]), test=pk.Split(x[60:], y[60:]))

        @pk.hookimpl
        def prunekit_register_datasets():
            return [Halfspace]
    """
    raise NotImplementedError


@hookspec
def prunekit_register_losses() -> list[type[Loss]]:
    """Called once at load; return task losses. ``ggn_factor`` is for criteria with a GGN only. Since 0.1.

    Example::

        import torch
        import prunekit as pk

        class Poisson(pk.Loss):
            name = "poisson"

            def total(self, outputs, targets):
                return (outputs.exp() - targets * outputs).sum()

            def normaliser(self, outputs, targets):
                return float(targets.numel())

            def ggn_factor(self, outputs, targets):
                for k in range(outputs[0].numel()):
                    column = torch.zeros_like(outputs)
                    column.flatten(1)[:, k] = (outputs.flatten(1)[:, k] / 2).exp()
                    yield column

        @pk.hookimpl
        def prunekit_register_losses():
            return [Poisson]
    """
    raise NotImplementedError


@hookspec
def prunekit_register_criteria() -> list[type[Criterion]]:
    """Called once at load; return pruning criteria: saliencies from weights and statistics. Since 0.1.

    Example::

        import prunekit as pk

        class Squared(pk.Criterion):
            name = "squared"
            requires = frozenset({"gradient"})

            def saliency(self, weights, statistics):
                return {k: (w * statistics["gradient"][k]) ** 2 for k, w in weights.items()}

        @pk.hookimpl
        def prunekit_register_criteria():
            return [Squared]
    """
    raise NotImplementedError


@hookspec
def prunekit_register_schedulers() -> list[type[Scheduler]]:
    """Called once at load; return schedulers, which say how much goes at each step. Since 0.1.

    Example::

        import prunekit as pk

        class Halves(pk.Scheduler):
            name = "halves"

            class Options(pk.Options):
                steps: int = 3

            def levels(self):
                return [1 - 0.5 ** (i + 1) for i in range(self.options.steps)]

        @pk.hookimpl
        def prunekit_register_schedulers():
            return [Halves]
    """
    raise NotImplementedError


@hookspec
def prunekit_register_statistics() -> list[type[Estimator]]:
    """Called once at load; return estimators of statistics that criteria can require. Since 0.1.

    Example::

        import torch
        import prunekit as pk

        class OutputGradient(pk.Estimator):
            name = "output_gradient"

            def start(self, problem):
                self.sums = problem.zeros()

            def add(self, batch):
                gradients = torch.autograd.grad(
                    batch.outputs.sum(), list(batch.problem.parameters.values()),
                    retain_graph=True, allow_unused=True, materialize_grads=True,
                )
                for total, gradient in zip(self.sums.values(), gradients):
                    total += gradient

            def finish(self, normaliser):
                return {k: total / normaliser for k, total in self.sums.items()}

        @pk.hookimpl
        def prunekit_register_statistics():
            return [OutputGradient]
    """
    raise NotImplementedError


@hookspec
def prunekit_register_selectors() -> list[type[Selector]]:
    """Called once at load; return selectors, which turn saliencies into masks. Since 0.1.

    Example::

        import torch
        import prunekit as pk

        class LastFirst(pk.Selector):
            name = "last_first"

            def select(self, items, budget):
                kept = items.open.clone()
                left = budget - items.gone
                for layer in reversed(items.layers):
                    here = kept[layer.part]
                    order = items.saliency[layer.part].masked_fill(~here, torch.inf).argsort(stable=True)
                    going = order[: min(left, int(here.sum()))]
                    here[going] = False
                    left -= len(going)
                return kept

        @pk.hookimpl
        def prunekit_register_selectors():
            return [LastFirst]
    """
    raise NotImplementedError


@hookspec
def prunekit_register_probes() -> list[type[Probe]]:
    """Called once at load; return probes, which measure the loss landscape at moments of a run. Since 0.1.

    Example::

        import prunekit as pk

        class Norms(pk.Probe):
            name = "norms"

            def measure(self, moment, generator):
                squares = [w.double().square().sum() for w in moment.weights("pruned").values()]
                norm = float(sum(squares)) ** 0.5
                return pk.ProbeRecord({"pruned": {"norm": pk.Series([norm], ("network",))}}, {"norm": norm})

        @pk.hookimpl
        def prunekit_register_probes():
            return [Norms]
    """
    raise NotImplementedError


@hookspec
def prunekit_register_recorders() -> list[type[Recorder]]:
    """Called once at load; return recorders, which store what happens in a run. Since 0.1.

    Example::

        import prunekit as pk

        class Lines(pk.Recorder):
            name = "lines"

            def step_finished(self, run, step):
                with open(run.out.with_suffix(".txt"), "a") as file:
                    print(step.step, step.sparsity, step.delta_loss, file=file)

        @pk.hookimpl
        def prunekit_register_recorders():
            return [Lines]
    """
    raise NotImplementedError


@hookspec
def prunekit_register_metrics() -> list[type[Metric]]:
    """Called once at load; return metrics, which are measured beside loss and error. Since 0.2.

    Example::

        import torch
        import prunekit as pk

        class Confidence(pk.Metric):
            name = "confidence"

            def sums(self, outputs, targets, loss):
                scores, labels = loss.predictions(outputs, targets)
                return torch.stack([scores.softmax(1).amax(1).sum().double(), torch.tensor(float(len(labels)))])

            def value(self, sums):
                return sums[0] / sums[1]

        @pk.hookimpl
        def prunekit_register_metrics():
            return [Confidence]
    """
    raise NotImplementedError


@hookspec
def prunekit_register_executors() -> list[type[Executor]]:
    """Called once at load; return executors, which start the workers of a sweep. Since 0.2.

    Example::

        import subprocess
        import prunekit as pk

        class Running(pk.Worker):
            def __init__(self, command, log):
                self.log = log
                with open(log, "w") as errors:
                    self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)

            def poll(self):
                return self.process.poll()

            def stop(self):
                self.process.terminate()
                self.process.wait()

            def said(self):
                return self.log.read_text()

        class Nice(pk.Executor):
            name = "nice"

            def start(self, job, index):
                return Running(["nice", *job.command], job.folder / f"worker-{index}.log")

        @pk.hookimpl
        def prunekit_register_executors():
            return [Nice]
    """
    raise NotImplementedError


@hookspec
def prunekit_run_started(run: RunView) -> None:
    """Called once when a run starts or is resumed, before any work; ``run`` is plain data. Since 0.1.

    Example::

        import sys
        import prunekit as pk

        @pk.hookimpl
        def prunekit_run_started(run):
            print("pruning", run.spec["name"], file=sys.stderr)
    """


@hookspec
def prunekit_step_finished(run: RunView, step: StepRecord) -> None:
    """Called after every pruning step, once it is recorded; ``step`` is its row of the table. Since 0.1.

    Example::

        import sys
        import prunekit as pk

        @pk.hookimpl
        def prunekit_step_finished(step):
            print("step", step.step, "changed the loss by", step.delta_loss, file=sys.stderr)
    """


@hookspec
def prunekit_run_finished(run: RunView) -> None:
    """Called once when a run ends, also when it fails; ``run.status`` says how it ended. Since 0.1.

    Example::

        import sys
        import prunekit as pk

        @pk.hookimpl
        def prunekit_run_finished(run):
            print(run.spec["name"], "is", run.status, file=sys.stderr)
    """
