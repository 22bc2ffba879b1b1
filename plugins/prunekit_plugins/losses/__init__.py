"""Task losses: what is summed over examples, and by what it is divided."""

from prunekit import Loss, hookimpl
from prunekit_plugins.losses.bce_with_logits import BinaryCrossEntropy
from prunekit_plugins.losses.causal_lm import CausalLanguageModel
from prunekit_plugins.losses.cross_entropy import CrossEntropy
from prunekit_plugins.losses.mse import MeanSquaredError
from prunekit_plugins.losses.token_cross_entropy import TokenCrossEntropy


@hookimpl
def prunekit_register_losses() -> list[type[Loss]]:
    """Return the classes of the built-in losses, to be registered when plugins are loaded."""
    return [CrossEntropy, TokenCrossEntropy, CausalLanguageModel, MeanSquaredError, BinaryCrossEntropy]
