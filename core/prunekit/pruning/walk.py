"""A walk over the blocks, in which each is looked at by itself and pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import RunError, UnsupportedError
from prunekit.losses.base import Loss
from prunekit.masks.axes import remember_axes
from prunekit.masks.experts import experts, spread, unreached
from prunekit.masks.prunable import shortened
from prunekit.masks.weights import pruned_counts
from prunekit.network.call import Batch, Inputs, few_examples, pieces, unpack
from prunekit.network.heap import give_back
from prunekit.network.relay import Relay
from prunekit.network.remembered import trust
from prunekit.network.restore import evaluating
from prunekit.network.shelf import Shelf
from prunekit.network.stages import Alone, Arguments, Stages
from prunekit.pruning.asking import asked, lent_weights
from prunekit.pruning.backward import Backward
from prunekit.pruning.blocks import Block, Done, Finished, Scene
from prunekit.pruning.change import Kept
from prunekit.pruning.criterion import Criterion
from prunekit.pruning.proposal import Context
from prunekit.pruning.sample import Sample
from prunekit.pruning.selector import Selector
from prunekit.pruning.stand_ins import Apart, Given, Noted, Noting
from prunekit.pruning.swapped import Swept
from prunekit.seeds import generator
from prunekit.statistics.estimate import estimate
from prunekit.statistics.request import Estimates, Statistic

_TIGHT = 4
"""By which activations have less than the memory, where the network has no room: beside them lie a block's matrices."""
_WORKING = 64
"""Bytes that an example's activations inside a block may take, for each byte that enters it."""


@dataclass
class Walk:
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

    of: Scene
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
                if self._back is not None:
                    if self._back.is_last(index):  # whose statistics say what is sent back
                        self._context(block, index, relay, self.selector, None)
                    self._back.step_back(index)
                self._again(block, done)
            else:
                done = Done({}, {})
                for level in levels:
                    shares = block.own(level)
                    selector = Apart(self.selector, self.of.layers, shares, block)
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
            context, _ = self._context(block, index, relay, Noting(), None)
            try:
                self.criterion.propose(context)
            except Noted as noted:
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
            self._propose(block, index, relay, Given(own), pruned_counts(own))

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
                    self.of.home.settle(name)

    def _backwards(self, sample: Sample) -> Iterator[tuple[int, Block, Relay]]:
        cut: list[tuple[Inputs, Any]] = []
        for inputs, targets in map(unpack, sample.batches):
            entering = self.stages.entered(0, few_examples(inputs, 1), []).some().values()
            room = self.of.memory // (2 * _WORKING)
            cut += pieces(inputs, targets, max(1, room // max(1, sum(t.nbytes for t in entering))))
        relay = Relay(self.stages, [inputs for inputs, _ in cut], self.shelf, keeps=True)
        last = len(self.stages.names) - 1
        for index, name in enumerate(self.stages.names[:last]):
            with self.of.home.present(name):
                relay.run(index, self.of.memory // _WORKING)
        loss = self.of.surroundings.loss
        self._back = Backward(self.stages, cut, loss, relay.answers, self.shelf, self.normaliser)
        for index in range(last, -1, -1):
            block = self.of.blocks[self.stages.names[index]]
            with self.of.home.present(block.name):
                if block.layers:
                    yield index, block, relay
                else:
                    self._back.step_back(index)
                    self.of.home.settle(block.name)

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
                f"criterion {self.criterion.name!r} prunes a different number of weights of {shortened(wrong)} than its "
                f"shares() says"
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
                f"no example has reached some experts of {block.name}, so nothing is known about their weights: they stay "
                "as long as there are others to prune. Take more examples, or different ones",
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
            if not self.of.home.always:
                trust(alone)
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
