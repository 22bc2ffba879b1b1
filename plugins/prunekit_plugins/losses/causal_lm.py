"""The loss of language models that predict each token from those before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunekit import DataError
from prunekit_plugins.losses.token_cross_entropy import TokenCrossEntropy

if TYPE_CHECKING:
    from torch import Generator, Tensor


class CausalLanguageModel(TokenCrossEntropy):
    """Cross-entropy of each token given those before it, in nats: logits ``[N, T, C]``, labels ``[N, T]``.

    Labels are the input's own tokens, as Hugging Face's models take them: the logits at a position are compared with the
    label of the next one, and labels of −100 (``ignore_index``) do not count. Averaged over the tokens that do. It is
    ``token_cross_entropy`` of ``logits[:, :-1]`` and ``labels[:, 1:]``; a loss term is a token.
    """

    name = "causal_lm"

    def check(self, targets: Tensor) -> None:
        """Refuse labels that are no sequences of tokens.

        Raises:
            DataError: Saying what was found.
        """
        if targets.ndim != 2 or targets.is_floating_point() or targets.shape[1] < 2:
            raise DataError(
                f"loss {self.name!r}: labels are token indices of shape (sequences, length), of two tokens at least; found "
                f"{targets.dtype} of shape {tuple(targets.shape)}"
            )
        super().check(targets[:, 1:])

    def counted(self, targets: Tensor) -> Tensor:
        """All but each sequence's first token, which nothing comes before, and those that are ignored."""
        counted = super().counted(targets)
        counted[:, 0] = False
        return counted

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum of the cross-entropy over the batch's tokens that count."""
        return super().total(*self._shifted(outputs, targets))

    def normaliser(self, outputs: Tensor, targets: Tensor) -> float:
        """Number of tokens that count, or the sum of their classes' weights."""
        return super().normaliser(*self._shifted(outputs, targets))

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The batch's loss by torch's own mean over its tokens."""
        return super().mean(*self._shifted(outputs, targets))

    def ggn_rank(self, outputs: Tensor, targets: Tensor) -> int:
        """Classes − 1 for every token of a sequence but the last."""
        return super().ggn_rank(*self._shifted(outputs, targets))

    def ggn_factor(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """Columns of the Hessian's factor; zero at the last position, whose logits nothing is compared with."""
        return map(_whole, super().ggn_factor(*self._shifted(outputs, targets)))

    def term_gradients(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """Gradients of the loss terms, each column for one token of every sequence."""
        return map(_whole, super().term_gradients(*self._shifted(outputs, targets)))

    def term_count(self, outputs: Tensor, targets: Tensor) -> int:
        """Tokens of a sequence but one."""
        return super().term_count(*self._shifted(outputs, targets))

    def draw(self, outputs: Tensor, targets: Tensor, generator: Generator) -> Tensor:
        """A label for every token but the first."""
        return _whole(super().draw(*self._shifted(outputs, targets), generator))

    def predictions(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the labels of the tokens that follow."""
        return super().predictions(*self._shifted(outputs, targets))

    def errors(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        """Wrong and all tokens that count."""
        return super().errors(*self._shifted(outputs, targets))

    def _shifted(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the labels that they are compared with.

        Raises:
            DataError: If they do not fit.
        """
        if outputs.ndim != 3 or targets.shape != outputs.shape[:2]:
            raise DataError(
                f"loss {self.name!r}: logits have the shape (sequences, length, vocabulary), and labels (sequences, "
                f"length); found {tuple(outputs.shape)} and {tuple(targets.shape)}"
            )
        return outputs[:, :-1], targets[:, 1:]


def _whole(column: Tensor) -> Tensor:
    """With a last position, of zeros."""
    import torch

    return torch.nn.functional.pad(column, (0, 0, 0, 1))
