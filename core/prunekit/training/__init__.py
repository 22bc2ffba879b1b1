"""The training loop, for the dense network and for fine-tuning."""

from prunekit.training.loop import Trainer
from prunekit.training.normalisation import recalibrate

__all__ = ["Trainer", "recalibrate"]
