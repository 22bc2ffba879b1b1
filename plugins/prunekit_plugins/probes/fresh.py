"""What a step does to the loss of examples that it was not made on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit import DataError, Probe, ProbeRecord, Series

if TYPE_CHECKING:
    from torch import Generator

    from prunekit import Moment


class Fresh(Probe):
    """Loss after minus loss before a step, on a fresh draw of as many examples as the step's own.

    A step that adjusts the weights that stay fits them to its examples, so the change there says too little. The draw
    holds none of the step's own; all attempts at a step share it. Two forward passes.
    """

    name = "fresh"
    moments = ("step",)

    def measure(self, moment: Moment, generator: Generator) -> ProbeRecord:
        """Measure the change.

        Raises:
            DataError: If this is no step, or there are no other examples than the step's.
        """
        from prunekit import StepMoment

        if not isinstance(moment, StepMoment):
            raise DataError(
                f"probe {self.name!r}: measures steps; accepted moments are step and {{every: n}}"
            )
        if moment.fresh is None:
            raise DataError(
                f"probe {self.name!r}: there are no examples besides those of the step; leave some out of it "
                "(prune.examples), or give pk.prune a function that draws its batches"
            )
        before = moment.loss(moment.before(), moment.fresh)
        change = moment.loss(moment.after(), moment.fresh) - before
        return ProbeRecord({"fresh": {"delta_loss": Series(change, (), "loss")}}, {"delta_loss": change})
