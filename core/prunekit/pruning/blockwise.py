"""A step that is made block by block: of statistics and activations, one block's at a time.

A block is a small network of its own. What enters it is what the blocks before it give, pruned or as they were; what is
estimated, proposed and checked is as for a whole network. New values and zeros go into the network at once, since the next
block may have to see them, and can be taken back all together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from prunekit import distributed
from prunekit.errors import SpecError, UnsupportedError
from prunekit.losses.base import Loss
from prunekit.masks.items import Items
from prunekit.masks.prunable import shortened
from prunekit.masks.weights import Layer, pruned_counts
from prunekit.network.call import Inputs, count, unpack
from prunekit.network.measure import measure
from prunekit.network.shelf import Shelf
from prunekit.network.stages import Stages, blocks_of
from prunekit.observing.moment import Surroundings
from prunekit.pruning.blocks import Block, Finished, Home, Scene
from prunekit.pruning.criterion import Criterion
from prunekit.pruning.sample import Sample
from prunekit.pruning.selector import Selector
from prunekit.pruning.sequential import Sequential
from prunekit.pruning.swapped import Swapped, Swept
from prunekit.pruning.walk import Walk


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

    Attributes:
        scene: All of these, and the blocks.
        goes_back: Whether a criterion that has been checked needs the loss, so that blocks are pruned from the last to the
            first.

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
        self._names = blocks_of(surroundings.model, settings.patterns)
        blocks = {name: Block.of(name, layers) for name in self._names}
        self.scene = Scene(surroundings, settings, parameters, layers, blocks, warn, watch, home or Home())
        inside = {name for block in blocks.values() for name in block.names.values()}
        outside = [layer.name for layer in layers if layer.name not in inside]
        if outside:
            raise SpecError(
                f"prune.sequential: {shortened(outside)} {'is' if len(outside) == 1 else 'are'} prunable but in no block; "
                "leave out what is not to be pruned (prunable: {exclude: [...]}, or {preset: transformer_blocks}), or list "
                "its module among the blocks"
            )
        if distributed.world() > 1:
            raise UnsupportedError(
                "prune.sequential: works in one process only; leave it out when there are several"
            )
        self._stages: Stages | None = None
        self.goes_back = False

    def check(
        self, criterion: Criterion, lam: float, selector: Selector, budgets: Sequence[int]
    ) -> list[str]:
        """Refuse what cannot be done block by block; what statistics will take, in words.

        Raises:
            SpecError: If layers of all blocks compete, where each block is finished before the next.
            UnsupportedError: If a statistic needs more than what enters a layer, or does not fit.
        """
        estimators = self.scene.surroundings.estimators(criterion.required(lam))
        deep = {e.name: e for e in estimators.values() if e.needs_data and not e.of_inputs}
        twice = [name for name, e in deep.items() if e.second_order]
        whole = [e.name for e in estimators.values() if not e.needs_data]
        if whole or not criterion.separable:
            why = (
                f"needs {', '.join(whole)}, which covers the whole network"
                if whole
                else "weighs layers together"
            )
            raise UnsupportedError(
                f"prune.sequential: criterion {criterion.name!r} {why}; leave sequential out, or take a criterion that "
                "looks at each layer by itself"
            )
        if deep and self.scene.settings.inputs == "pruned":
            raise UnsupportedError(
                f"prune.sequential: criterion {criterion.name!r} needs {', '.join(deep)}, which also depends on later "
                "blocks, and those are not pruned yet; take inputs: dense, or a criterion based on layer inputs "
                "(wanda, sparsegpt, alps, obc, magnitude)"
            )
        if twice:
            raise UnsupportedError(
                f"prune.sequential: {', '.join(twice)} needs second derivatives through the whole network, which is not "
                "held as a whole here; take curvature: ggn, ggn_mc or empirical_fisher"
            )
        self.goes_back = bool(deep)
        gone = [0] * len(self.scene.layers)
        apart = self._shares(criterion, selector, gone, budgets[-1] if budgets else 0) is not None
        over_all = (
            self.scene.settings.inputs == "dense" and criterion.uses_selector and self.scene.home.always
        )
        if not apart and not over_all:
            raise SpecError(
                "prune.sequential: each layer's share of the budget must be known beforehand, since its block is finished "
                f"before the next is begun; {'selector' if criterion.uses_selector else 'criterion'} "
                f"{(selector if criterion.uses_selector else criterion).name!r} lets layers compete. Accepted are the "
                "selectors layerwise and nm, and criteria with scope: layerwise"
                + (
                    "; with inputs: dense, every selector"
                    if criterion.uses_selector and self.scene.home.always
                    else ""
                )
            )
        notices = [
            estimator.check(block.layers, self.scene.memory)
            for block in self.scene.blocks.values()
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
        counted = _Counted(self.scene.surroundings.loss)
        loss = measure(self.scene.surroundings.model, sample.batches, counted)[0]
        change = Swapped(self.scene.parameters, Shelf(self.scene.settings.offload))
        swept = Swept(dict(masks), change)
        counts = pruned_counts(masks)
        gone = [counts[layer.name] for layer in self.scene.layers]
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
            self._stages = Stages(
                self.scene.surroundings.model, self._names, inputs[0] if self.scene.home.always else None
            )
        with Shelf(self.scene.settings.offload) as shelf:
            walk = Walk(
                self.scene,
                self._stages,
                inputs,
                normaliser,
                shelf,
                swept,
                criterion,
                lam,
                selector,
                sample if self.goes_back else None,
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
            levels.append({layer.name: share for layer, share in zip(self.scene.layers, shares, strict=True)})
            gone = shares
        return levels

    def _shares(
        self, criterion: Criterion, selector: Selector, gone: Sequence[int], budget: int
    ) -> list[int] | None:
        chooses: Criterion | Selector = selector if criterion.uses_selector else criterion
        return chooses.shares(self.scene.layers, gone, budget)


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
