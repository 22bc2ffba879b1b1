"""Task losses."""

from prunekit import Loss, hookimpl
from prunekit_plugins.losses.bce_with_logits import BinaryCrossEntropy
from prunekit_plugins.losses.cross_entropy import CrossEntropy
from prunekit_plugins.losses.mse import MeanSquaredError
from prunekit_plugins.losses.token_cross_entropy import TokenCrossEntropy


@hookimpl
def prunekit_register_losses() -> list[type[Loss]]:
    """The built-in losses."""
    return [CrossEntropy, TokenCrossEntropy, MeanSquaredError, BinaryCrossEntropy]
