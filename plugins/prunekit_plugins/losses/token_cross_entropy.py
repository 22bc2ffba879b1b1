"""Softmax cross-entropy of sequence models, whose logits have the class last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunekit import Loss
from prunekit_plugins.losses.cross_entropy import CrossEntropy, CrossEntropyOptions

if TYPE_CHECKING:
    from torch import Generator, Tensor


class TokenCrossEntropy(Loss):
    """Cross-entropy over tokens, in nats: logits ``[N, …, C]``, class indices ``[N, …]``.

    It is ``cross_entropy`` with the class axis moved: averaged over the tokens that are not ignored, by
    class weight where there is one. An example is a sequence, a loss term a token. A loss of its own name,
    because shapes alone cannot tell ``[N, C, T]`` from ``[N, T, C]`` where T = C.
    """

    name = "token_cross_entropy"
    least = 0.0
    Options = CrossEntropyOptions

    @property
    def _loss(self) -> CrossEntropy:
        loss = CrossEntropy.from_options(self.options)
        loss.name = self.name  # type: ignore[misc]  # messages are about the task's loss
        return loss

    def check(self, targets: Tensor) -> None:
        """Refuse the targets that ``cross_entropy`` refuses."""
        self._loss.check(targets)

    def counted(self, targets: Tensor) -> Tensor:
        """Those that ``cross_entropy`` counts."""
        return self._loss.counted(targets)

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum of the cross-entropy over the batch's tokens that count."""
        return self._loss.total(outputs.movedim(-1, 1), _first(outputs, targets))

    def normaliser(self, outputs: Tensor, targets: Tensor) -> float:
        """Number of tokens that count, or the sum of their classes' weights."""
        return self._loss.normaliser(outputs.movedim(-1, 1), _first(outputs, targets))

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The batch's loss by torch's own mean over its tokens."""
        return self._loss.mean(outputs.movedim(-1, 1), _first(outputs, targets))

    def ggn_rank(self, outputs: Tensor, targets: Tensor) -> int:
        """Classes − 1 for every token of a sequence."""
        return self._loss.ggn_rank(outputs.movedim(-1, 1), _first(outputs, targets))

    def ggn_factor(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """Columns of the Hessian's factor, each for one token of every sequence, with the class last."""
        for column in self._loss.ggn_factor(outputs.movedim(-1, 1), _first(outputs, targets)):
            yield column.movedim(1, -1)

    def term_gradients(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """Gradients of the loss terms, each column for one token of every sequence, with the class last."""
        for column in self._loss.term_gradients(outputs.movedim(-1, 1), _first(outputs, targets)):
            yield column.movedim(1, -1)

    def term_count(self, outputs: Tensor, targets: Tensor) -> int:
        """Tokens of a sequence."""
        return self._loss.term_count(outputs.movedim(-1, 1), _first(outputs, targets))

    def draw(self, outputs: Tensor, targets: Tensor, generator: Generator) -> Tensor:
        """A label for every token."""
        return self._loss.draw(outputs.movedim(-1, 1), _first(outputs, targets), generator).movedim(1, -1)

    def predictions(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and labels of the tokens that count."""
        return self._loss.predictions(outputs.movedim(-1, 1), _first(outputs, targets))

    def errors(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        """Wrong and all tokens that count."""
        return self._loss.errors(outputs.movedim(-1, 1), _first(outputs, targets))


def _first(outputs: Tensor, targets: Tensor) -> Tensor:
    """Targets as ``cross_entropy`` has them; probabilities have the class last too."""
    return targets.movedim(-1, 1) if targets.ndim == outputs.ndim else targets
