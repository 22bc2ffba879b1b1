"""Which weights may be pruned, which of them go, and keeping zeros zero."""

from prunekit.masks.apply import Attachment, apply_masks, attach, zero
from prunekit.masks.prunable import input_axes, prunable_parameters
from prunekit.masks.select import prune_smallest, smallest

__all__ = [
    "Attachment",
    "apply_masks",
    "attach",
    "input_axes",
    "prunable_parameters",
    "prune_smallest",
    "smallest",
    "zero",
]
