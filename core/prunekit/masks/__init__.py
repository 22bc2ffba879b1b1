"""Which weights may be pruned, how many of each layer go, and keeping zeros zero."""

from prunekit.masks.apply import Attachment, apply_masks, attach, zero
from prunekit.masks.budget import Layer, apportion, pruned_count
from prunekit.masks.prunable import prunable_parameters
from prunekit.masks.select import prune_smallest, smallest

__all__ = [
    "Attachment",
    "Layer",
    "apply_masks",
    "apportion",
    "attach",
    "prunable_parameters",
    "prune_smallest",
    "pruned_count",
    "smallest",
    "zero",
]
