"""A step that is made block by block: of statistics and activations, one block's at a time.

A block is a small network of its own. What enters it is what the blocks before it give, pruned or as they were; what is
estimated, proposed and checked is as for a whole network. New values and zeros go into the network at once, since the next
block may have to see them, and can be taken back all together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from prunekit import distributed
from prunekit.errors import RunError, SpecError, UnsupportedError
from prunekit.losses.base import Loss
from prunekit.masks.apply import zero
from prunekit.masks.axes import remember_axes
from prunekit.masks.experts import experts, spread, unreached
from prunekit.masks.items import Items
from prunekit.masks.prunable import shortened
from prunekit.masks.weights import Layer, pruned_counts
from prunekit.network.call import Batch, Inputs, count, few_examples, pieces, unpack
from prunekit.network.heap import give_back
from prunekit.network.measure import measure
from prunekit.network.remembered import trust
from prunekit.network.restore import evaluating
from prunekit.network.shelf import Shelf
from prunekit.network.stages import Alone, Arguments, Relay, Stages, blocks_of
from prunekit.observing.moment import Surroundings
from prunekit.pruning.asking import asked, lent_weights
from prunekit.pruning.backward import Backward
from prunekit.pruning.change import Kept
from prunekit.pruning.criterion import Criterion
from prunekit.pruning.proposal import Context
from prunekit.pruning.sample import Sample
from prunekit.pruning.selector import Selector
from prunekit.pruning.sequential import Sequential
from prunekit.seeds import generator
from prunekit.statistics.estimate import DEFAULT_MEMORY, estimate
from prunekit.statistics.request import Estimates, Statistic

_OWN = "block."
"""What names of parameters begin with inside :class:`Alone`."""
_TIGHT = 4
"""By which activations have less than the memory, where the network has no room: beside them lie a block's matrices."""
_WORKING = 64
"""Bytes that an example's activations inside a block may take, for each byte that enters it."""


@dataclass(frozen=True)
class Block:
    """A block with the prunable weights in it.

    Attributes:
        name: The module's.
        names: Own name of a parameter, which begins with ``block.``, to its name in the network.
        layers: By their own names, in their order; they stand one after another.
    """

    name: str
    names: Mapping[str, str]
    layers: Sequence[Layer]

    @classmethod
    def of(cls, name: str, layers: Sequence[Layer]) -> Block:
        """The block of a name, with those of all layers that lie in it."""
        inside = [layer for layer in layers if layer.name.startswith(f"{name}.")]
        names = {_OWN + layer.name[len(name) + 1 :]: layer.name for layer in inside}
        own, start = [], 0
        for key, layer in zip(names, inside, strict=True):
            own.append(replace(layer, name=key, start=start))
            start += layer.size
        return cls(name, names, own)

    def own(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """What belongs to parameters of the network, by the block's own names."""
        return {key: named[name] for key, name in self.names.items() if name in named}


@dataclass
class Swept:
    """What a pass over the blocks has done.

    Attributes:
        masks: After it.
        change: Its change of the weights, which is in place.
        predicted: The change of the loss that the criterion predicts; ``None`` if it models no loss.
        updated: Whether weights that stay have new values.
    """

    masks: MutableMapping[str, Tensor]
    change: Change
    predicted: float | None = None
    updated: bool = False


@dataclass(frozen=True)
class Done:
    """What a block has become.

    Attributes:
        masks: Parameter to what is kept.
        values: Parameter to its values, of those whose survivors have new ones.
        predicted: The change of the loss that the criterion predicts for it.
    """

    masks: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    predicted: float | None = None


class Finished(Protocol):
    """Keeps what blocks have become, so that a step that is stopped goes on with the next block."""

    def get(self, block: str) -> Done | None:
        """What a block has become, if that is known."""
        ...

    def put(self, block: str, done: Done) -> None:
        """Keep what a block has become."""
        ...


class Home:
    """Where the weights of blocks are: in the network, unless somebody brings them when their turn comes."""

    always = True
    """Whether they are in the network all the time."""

    @contextmanager
    def present(self, block: str) -> Iterator[None]:
        """Within it, the block has its weights."""
        yield

    def settle(self, block: str) -> None:
        """Called when a block has been pruned, before those after it are run."""


class Change(Protocol):
    """Takes a step's new values and masks."""

    def make(self, name: str, value: Tensor | None, mask: Tensor) -> None:
        """Give a parameter new values, if there are any, and zeros where it is pruned."""
        ...

    def undo(self) -> None:
        """Put back what stood there."""
        ...


class Swapped:
    """A change of weights in place, with what stood there; the two can change places.

    Attributes:
        applied: Whether the change is in place.
    """

    def __init__(self, parameters: Mapping[str, Tensor], shelf: Shelf) -> None:
        self._parameters, self._shelf = parameters, shelf
        self._other: dict[str, Callable[[], Tensor]] = {}
        self.applied = True

    def make(self, name: str, value: Tensor | None, mask: Tensor) -> None:
        """Give a parameter new values, if there are any, and zeros where it is pruned."""
        p = self._parameters[name]
        if name not in self._other:
            self._other[name] = self._shelf.put(p.detach())
        with torch.no_grad():
            if value is not None:
                p.copy_(value)
        zero({name: p}, {name: ~mask})

    def apply(self) -> None:
        """Put the change in place."""
        if not self.applied:
            self._swap()

    def undo(self) -> None:
        """Put back what stood there, bit by bit."""
        if self.applied:
            self._swap()

    def _swap(self) -> None:
        with torch.no_grad():
            for name, other in self._other.items():
                p, value = self._parameters[name], other()
                self._other[name] = self._shelf.put(p.detach())
                p.copy_(value)
        self.applied = not self.applied

    def before(self) -> dict[str, Tensor]:
        """The parameters without the change, copies."""
        return self._copies(not self.applied)

    def after(self) -> dict[str, Tensor]:
        """The parameters with the change, copies."""
        return self._copies(self.applied)

    def _copies(self, here: bool) -> dict[str, Tensor]:
        return {
            name: p.detach().clone() if here or name not in self._other else self._other[name]()
            for name, p in self._parameters.items()
        }


class Blockwise:
    """Makes steps block by block.

    Args:
        surroundings: The model, the loss, and what builds statistics.
        settings: Which blocks, and what they see.
        parameters: The prunable ones.
        layers: The same as layers.
        warn: Told of what a user should know, with its kind.
        watch: Told of each choice of the selector.
        home: Where the weights of blocks are.

    Raises:
        SpecError: If there are no such blocks, or prunable weights outside of them.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        settings: Sequential,
        parameters: Mapping[str, Tensor],
        layers: Sequence[Layer],
        warn: Callable[[str, str], None],
        watch: Callable[[Items, Tensor], None],
        home: Home | None = None,
    ) -> None:
        self.surroundings, self._model, self._loss = surroundings, surroundings.model, surroundings.loss
        self.settings, self.parameters, self.layers = settings, parameters, layers
        self.warn, self.watch, self.home = warn, watch, home or Home()
        self._names = blocks_of(self._model, settings.patterns)
        self.blocks = {name: Block.of(name, layers) for name in self._names}
        inside = {name for block in self.blocks.values() for name in block.names.values()}
        outside = [layer.name for layer in layers if layer.name not in inside]
        if outside:
            raise SpecError(
                f"prune.sequential: {shortened(outside)} {'is' if len(outside) == 1 else 'are'} prunable and in no block; "
                "leave out what is not to be pruned (prunable: {exclude: [...]}, or {preset: transformer_blocks}), or name "
                "its module among the blocks"
            )
        if distributed.world() > 1:
            raise UnsupportedError(
                "prune.sequential: works in one process; leave it out where there are several"
            )
        self._stages: Stages | None = None
        self._goes_back = False  # over the blocks, from the last to the first

    @property
    def memory(self) -> int:
        """Bytes for activations and products."""
        return self.surroundings.memory or DEFAULT_MEMORY

    def check(
        self, criterion: Criterion, lam: float, selector: Selector, budgets: Sequence[int]
    ) -> list[str]:
        """Refuse what cannot be done block by block; what statistics will take, in words.

        Raises:
            SpecError: If layers of all blocks compete, where each block is finished before the next.
            UnsupportedError: If a statistic needs more than what enters a layer, or does not fit.
        """
        estimators = self.surroundings.estimators(criterion.required(lam))
        deep = {e.name: e for e in estimators.values() if e.needs_data and not e.of_inputs}
        twice = [name for name, e in deep.items() if e.second_order]
        whole = [e.name for e in estimators.values() if not e.needs_data]
        if whole or not criterion.separable:
            why = (
                f"needs {', '.join(whole)}, which is of the whole network"
                if whole
                else "weighs layers together"
            )
            raise UnsupportedError(
                f"prune.sequential: criterion {criterion.name!r} {why}; leave sequential out, or take a criterion that "
                "looks at each layer by itself"
            )
        if deep and (self.settings.inputs == "pruned" or not self.home.always):
            raise UnsupportedError(
                f"prune.sequential: criterion {criterion.name!r} needs {', '.join(deep)}, which what comes after a block "
                "decides with, and that is not pruned yet; take inputs: dense, or a criterion of what enters a layer "
                "(wanda, sparsegpt, alps, obc, magnitude)"
            )
        if twice:
            raise UnsupportedError(
                f"prune.sequential: {', '.join(twice)} needs second derivatives through the whole network, which is not "
                "looked at as a whole; take curvature: ggn, ggn_mc or empirical_fisher"
            )
        self._goes_back = bool(deep)
        gone = [0] * len(self.layers)
        apart = self._shares(criterion, selector, gone, budgets[-1] if budgets else 0) is not None
        if not apart and (self.settings.inputs == "pruned" or not criterion.uses_selector):
            raise SpecError(
                "prune.sequential: each layer has to know beforehand how much it loses, since its block is finished before "
                f"the next is looked at; {'selector' if criterion.uses_selector else 'criterion'} "
                f"{(selector if criterion.uses_selector else criterion).name!r} lets layers compete. Accepted are the "
                "selectors layerwise and nm, and criteria with scope: layerwise"
                + ("; with inputs: dense, every selector" if criterion.uses_selector else "")
            )
        notices = [
            estimator.check(block.layers, self.memory)
            for block in self.blocks.values()
            if block.layers
            for estimator in estimators.values()
        ]
        return list(dict.fromkeys(notice for notice in notices if notice))

    def sweep(
        self,
        sample: Sample,
        criterion: Criterion,
        lam: float,
        selector: Selector,
        masks: Mapping[str, Tensor],
        budgets: Sequence[int],
        finished: Finished | None = None,
    ) -> tuple[Swept, Swapped, float]:
        """Make a step, in place; where it fails, the model is as before.

        Args:
            sample: The step's.
            criterion: Proposes, block by block.
            lam: Its λ.
            selector: Spends the budget.
            masks: Before it.
            budgets: Pruned weights afterwards; several, where each block goes through several steps.
            finished: Blocks that an earlier attempt at this step has finished, if it was stopped.

        Returns:
            What has been done, its change, and the loss before it.
        """
        inputs = [unpack(batch)[0] for batch in sample.batches]
        counted = _Counted(self._loss)
        loss = measure(self._model, sample.batches, counted)[0]
        change = Swapped(self.parameters, Shelf(self.settings.offload))
        swept = Swept(dict(masks), change)
        counts = pruned_counts(masks)
        gone = [counts[layer.name] for layer in self.layers]
        normaliser = counted.sum / sum(map(count, inputs))
        self.walk(inputs, normaliser, swept, criterion, lam, selector, gone, budgets, finished, sample)
        return swept, change, loss

    def walk(
        self,
        inputs: Sequence[Inputs],
        normaliser: float,
        swept: Swept,
        criterion: Criterion,
        lam: float,
        selector: Selector,
        gone: Sequence[int],
        budgets: Sequence[int],
        finished: Finished | None = None,
        sample: Sample | None = None,
    ) -> None:
        """Go over the blocks and prune them; where it fails, the change is taken back.

        Args:
            inputs: Of the step's batches.
            normaliser: Of the loss, for each example.
            swept: Is filled.
            criterion: See :meth:`sweep`.
            lam: Its λ.
            selector: See :meth:`sweep`.
            gone: Weights of each layer that are pruned before.
            budgets: See :meth:`sweep`.
            finished: See :meth:`sweep`.
            sample: The step's, for statistics of the loss.
        """
        if self._stages is None:
            self._stages = Stages(self._model, self._names, inputs[0] if self.home.always else None)
        with Shelf(self.settings.offload) as shelf:
            walk = _Walk(
                self,
                self._stages,
                inputs,
                normaliser,
                shelf,
                swept,
                criterion,
                lam,
                selector,
                sample if self._goes_back else None,
            )
            try:
                levels = self._levels(criterion, selector, gone, budgets)
                if levels is not None:
                    walk.choose(levels, finished)
                else:
                    walk.choose_over_all(budgets[-1])
            except BaseException:
                swept.change.undo()
                raise

    def _levels(
        self, criterion: Criterion, selector: Selector, gone: Sequence[int], budgets: Sequence[int]
    ) -> list[dict[str, int]] | None:
        """What each layer loses at each level; ``None`` where layers compete."""
        levels = []
        for budget in budgets:
            shares = self._shares(criterion, selector, gone, budget)
            if shares is None:
                return None
            levels.append({layer.name: share for layer, share in zip(self.layers, shares, strict=True)})
            gone = shares
        return levels

    def _shares(
        self, criterion: Criterion, selector: Selector, gone: Sequence[int], budget: int
    ) -> list[int] | None:
        chooses: Criterion | Selector = selector if criterion.uses_selector else criterion
        return chooses.shares(self.layers, gone, budget)


@dataclass
class _Walk:
    """One step's walk over the blocks.

    Attributes:
        of: What it belongs to.
        stages: The blocks in the order in which they run.
        inputs: Of the step's batches.
        normaliser: Of the loss, for each example.
        shelf: Where activations and saliencies wait.
        swept: What has been done so far.
        criterion: Proposes.
        lam: Its λ.
        selector: Spends the budget.
        sample: Where statistics are of the loss: the step's, and the blocks are gone through from the last to the first.
    """

    of: Blockwise
    stages: Stages
    inputs: Sequence[Inputs]
    normaliser: float
    shelf: Shelf
    swept: Swept
    criterion: Criterion
    lam: float
    selector: Selector
    sample: Sample | None = None
    _back: Backward | None = None
    _alone: Alone | None = None
    _arguments: Arguments | None = None

    def __post_init__(self) -> None:
        self._wanted = self.criterion.required(self.lam)
        built = self.of.surroundings.estimators(self._wanted)
        self._sees = any(estimator.needs_data for estimator in built.values())

    def choose(self, levels: Sequence[Mapping[str, int]], finished: Finished | None) -> None:
        """Choose layer by layer, each block through all levels before the next."""
        dense = self.of.settings.inputs == "dense"
        for index, block, relay in self._in_turn():
            if dense and self._back is None:
                self._go_on(relay, index)
            done = None if finished is None else finished.get(block.name)
            if done is not None:
                self._again(block, done)
            else:
                done = Done({}, {})
                for level in levels:
                    shares = block.own(level)
                    selector = _Apart(self.selector, self.of.layers, shares, block)
                    done = self._propose(block, index, relay, selector, shares)
                if finished is not None:
                    finished.put(block.name, done)
            del done  # which has the block's weights, and must not outlive it
            self.of.home.settle(block.name)
            if not dense:
                self._go_on(relay, index)

    def _again(self, block: Block, done: Done) -> None:
        """Let a block become what it has been."""
        for name in block.names.values():
            device = self.of.parameters[name].device
            value = done.values.get(name)
            self._make(name, None if value is None else value.to(device), done.masks[name].to(device))
        if done.predicted is not None:
            self.swept.predicted = (self.swept.predicted or 0.0) + done.predicted

    def choose_over_all(self, budget: int) -> None:
        """Collect the saliencies of all blocks, choose, and then give each block its values."""
        saliency: dict[str, Callable[[], Tensor]] = {}
        spared: dict[str, Tensor] = {}
        for index, block, relay in self._in_turn():
            if self._back is None:
                self._go_on(relay, index)
            context, _ = self._context(block, index, relay, _Noting(), None)
            try:
                self.criterion.propose(context)
            except _Noted as noted:
                for layer in block.layers:
                    values = noted.items.saliency[layer.part].view(layer.shape)
                    saliency[block.names[layer.name]] = self.shelf.put(values)
            spared |= {block.names[key]: which for key, which in context.spared.items()}
            if self._back is not None:
                self._back.step_back(index)
        of, masks = self.of, dict(self.swept.masks)
        context = Context(
            {}, {}, masks, budget, self.lam, self.selector, of.layers, watch=of.watch, spared=spared
        )
        chosen = context.select({layer.name: saliency.pop(layer.name)() for layer in of.layers})
        if not (self.criterion.updates or self.criterion.predicts):
            for name, mask in chosen.items():
                self._make(name, None, mask)
            return
        for index, block, relay in self._in_turn():
            if self._back is None:
                self._go_on(relay, index)
            own = block.own(chosen)
            self._propose(block, index, relay, _Given(own), pruned_counts(own))

    def _in_turn(self) -> Iterator[tuple[int, Block, Relay]]:
        """The blocks with prunable weights, in the order in which they run, or from the last; others are run through."""
        if self.sample is not None:
            yield from self._backwards(self.sample)
            return
        relay = Relay(self.stages, self.inputs, self.shelf)
        for index, name in enumerate(self.stages.names):
            block = self.of.blocks[name]
            with self.of.home.present(name):
                if block.layers:
                    yield index, block, relay
                else:
                    self._go_on(relay, index)

    def _backwards(self, sample: Sample) -> Iterator[tuple[int, Block, Relay]]:
        cut: list[tuple[Inputs, Any]] = []
        for inputs, targets in map(unpack, sample.batches):
            entering = self.stages.entered(0, few_examples(inputs, 1), []).some().values()
            room = self.of.memory // (2 * _WORKING)
            cut += pieces(inputs, targets, max(1, room // max(1, sum(t.nbytes for t in entering))))
        relay = Relay(self.stages, [inputs for inputs, _ in cut], self.shelf, keeps=True)
        last = len(self.stages.names) - 1
        for index in range(last):
            relay.run(index, self.of.memory // _WORKING)
        loss = self.of.surroundings.loss
        self._back = Backward(self.stages, cut, loss, relay.answers, self.shelf, self.normaliser)
        for index in range(last, -1, -1):
            block = self.of.blocks[self.stages.names[index]]
            if block.layers:
                yield index, block, relay
            else:
                self._back.step_back(index)

    def _go_on(self, relay: Relay, index: int) -> None:
        """Run a block, for those that come after it."""
        if self._sees and index + 1 < len(self.stages.names):
            give_back()
            relay.run(index, self.of.memory // _WORKING)
            give_back()

    def _propose(
        self, block: Block, index: int, relay: Relay, selector: Selector, shares: Mapping[str, int]
    ) -> Done:
        context, kept = self._context(block, index, relay, selector, shares)
        proposal = asked(self.criterion, context, kept)
        if self._back is not None:
            self._back.step_back(index)  # through the block as it was
        wrong = [block.names[key] for key, n in pruned_counts(proposal.masks).items() if n != shares[key]]
        if wrong:
            raise RunError(
                f"criterion {self.criterion.name!r} prunes other numbers of {shortened(wrong)} than its shares() says"
            )
        for key, name in block.names.items():
            value = None if proposal.values is None else proposal.values.get(key)
            self._make(name, value, proposal.masks[key])
        if proposal.predicted_delta_loss is not None:
            self.swept.predicted = (self.swept.predicted or 0.0) + proposal.predicted_delta_loss
        names = block.names.values()
        updated = proposal.values is not None
        values = {name: self.of.parameters[name].detach() for name in names} if updated else {}
        masks = {name: self.swept.masks[name] for name in names}
        return Done(masks, values, proposal.predicted_delta_loss)

    def _make(self, name: str, value: Tensor | None, mask: Tensor) -> None:
        self.swept.masks[name] = mask
        self.swept.change.make(name, value, mask)
        self.swept.updated = self.swept.updated or value is not None

    def _context(
        self, block: Block, index: int, relay: Relay, selector: Selector, shares: Mapping[str, int] | None
    ) -> tuple[Context, Kept]:
        parameters, masks = block.own(self.of.parameters), block.own(self.swept.masks)
        statistics = self._statistics(block, index, relay, parameters, masks)
        kept = Kept(parameters if self.of.home.always else {})
        spared = self._spared(block, statistics, masks)
        budget = sum((pruned_counts(masks) if shares is None else shares).values())
        dtypes = {key: p.dtype for key, p in parameters.items()}
        if self.of.home.always:
            weights = lent_weights(parameters, kept)
        else:  # what is read from files can be read again, so it needs no copy to be safe from a criterion
            weights = {key: p.detach() for key, p in parameters.items()}
        context = Context(
            weights,
            statistics,
            masks,
            budget,
            self.lam,
            selector,
            block.layers,
            dtypes,
            self.of.watch,
            spared,
            shares,
        )
        return context, kept

    def _spared(self, block: Block, statistics: Estimates, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of experts that no example has reached."""
        counts = experts(self.of.surroundings.model, block.names.values())
        silent = unreached(block.own(counts), statistics.values(), masks)
        if silent:
            self.of.warn(
                "experts",
                f"no example has reached experts of {block.name}, so nothing is known of their weights: they stay as long "
                "as there are others. Take more examples, or others",
            )
        return {key: spread(which, masks[key]) for key, which in silent.items()}

    def _statistics(
        self,
        block: Block,
        index: int,
        relay: Relay,
        parameters: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
    ) -> Estimates:
        estimators = self.of.surroundings.estimators(self._wanted)
        if not estimators:
            return Estimates()
        if self._back is not None and self.sample is not None:
            alone: nn.Module = self._back.network(index)
        else:
            alone = self._by_itself(self.stages.modules[index])
        remember_axes(alone, {layer.name: (layer.input_axis, layer.output_axis) for layer in block.layers})

        def batches() -> Iterator[Batch]:
            for arguments in relay.arguments(index):
                self._arguments = arguments
                numbers = torch.arange(arguments.examples, device=next(iter(parameters.values())).device)
                yield {"rows": numbers, **arguments.some(), "labels": numbers}

        try:
            if self._back is not None and self.sample is not None:
                # Every block, and the network as a whole, begin their draws alike.
                draws = torch.Generator().set_state(self.sample.generator.get_state())
                with self.stages.ready(), evaluating(self.stages.model):
                    found = estimate(
                        alone,
                        self._back.batches(index),
                        estimators,
                        self._back.loss(index),
                        parameters,
                        draws,
                        self.of.memory,
                        masks,
                    )
            else:
                draws = generator(0, "blocks", block.name)
                loss = _Answers(self.normaliser)
                memory = self.of.memory
                room = memory if self.of.home.always else memory // _TIGHT
                found = estimate(alone, batches(), estimators, loss, parameters, draws, memory, masks, room)
        except (UnsupportedError, RunError) as error:
            raise type(error)(f"{block.name}: {error}") from error
        finally:
            self._arguments = None
        give_back()
        for request, tensors in found.statistics.items():
            if remark := getattr(tensors, "remark", ""):
                self.of.warn(f"statistic {Statistic.of(request).name}", remark)
        return found.statistics

    def _by_itself(self, module: nn.Module) -> Alone:
        """A block as a network; blocks of one make share what has been found out about them."""
        if self._alone is None or not _alike(self._alone.block, module):
            self._alone = Alone(module, self._filled)
            if not self.of.home.always:
                trust(self._alone)
        self._alone.block = module
        return self._alone

    def _filled(self, some: Mapping[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        assert self._arguments is not None
        return self._arguments.filled(some)


def _alike(some: nn.Module, other: nn.Module) -> bool:
    """Whether two blocks are of one class, and their parameters of the same names, shapes and types."""
    kinds = [
        (
            type(m),
            [(n, p.shape, p.dtype, p.device) for n, p in m.named_parameters()],
            [type(x) for x in m.modules()],
        )
        for m in (some, other)
    ]
    return kinds[0] == kinds[1]


class _Noted(BaseException):
    def __init__(self, items: Items) -> None:
        self.items = items


class _Noting(Selector):
    """Takes note of what there is to choose from."""

    name = "noting"

    def select(self, items: Items, budget: int) -> NoReturn:
        raise _Noted(items)


class _Given(Selector):
    """Chooses what has been chosen."""

    name = "given"

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._masks = masks

    def select(self, items: Items, budget: int) -> Tensor:
        return torch.cat([self._masks[layer.name].reshape(-1) for layer in items.layers])


class _Apart(Selector):
    """Lets a selector choose in each layer of a block by itself, by the names that the network gives them."""

    name = "apart"

    def __init__(
        self, selector: Selector, layers: Sequence[Layer], shares: Mapping[str, int], block: Block
    ) -> None:
        super().__init__()
        self._selector, self._shares = selector, shares
        named = {layer.name: replace(layer, start=0) for layer in layers}
        self._layers = {key: named[name] for key, name in block.names.items()}

    def select(self, items: Items, budget: int) -> Tensor:
        parts = []
        for layer in items.layers:
            one = replace(items.layer(layer), layers=[self._layers[layer.name]])
            parts.append(self._selector.select(one, self._shares[layer.name]))
        return torch.cat(parts)


class _Counted(Loss):
    """A loss, and the sum of its normalisers."""

    name = "counted"

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self._loss, self.sum = loss, 0.0

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._loss.total(outputs, targets)

    def normaliser(self, outputs: Tensor, targets: Tensor) -> float:
        found = self._loss.normaliser(outputs, targets)
        self.sum += found
        return found


class _Answers(Loss):
    """What a block answers, all of it, so that every weight counts; examples have the task's normaliser in equal parts."""

    name = "answers"

    def __init__(self, normaliser: float) -> None:
        super().__init__()
        self._normaliser = normaliser

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sum()

    def normaliser(self, outputs: Tensor, targets: Tensor) -> float:
        return self._normaliser * len(targets)
