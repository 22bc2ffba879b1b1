"""Softmax cross-entropy, for logits whose second axis is the class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from prunekit import DataError, Loss, Options
from prunekit_plugins.losses._columns import apart
from prunekit_plugins.losses._shapes import refuse_no_tensor

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor


class CrossEntropyOptions(Options):
    """Options.

    Attributes:
        label_smoothing: Share of the target mass that is spread evenly over the classes.
        weight: A weight per class.
        ignore_index: Target value that does not count.
    """

    label_smoothing: float = Field(default=0.0, ge=0, le=1)
    weight: tuple[float, ...] | None = None
    ignore_index: int = -100


class CrossEntropy(Loss):
    """``torch.nn.functional.cross_entropy``, in nats.

    Outputs are logits ``[N, C]`` or ``[N, C, d1, …]``; targets class indices ``[N, …]``, integers of any
    type, or probabilities in the shape of the outputs. Averaged as torch does: over non-ignored targets, by class
    weight where there is one; over all targets for probabilities.
    """

    name = "cross_entropy"
    least = 0.0
    Options = CrossEntropyOptions

    def check(self, targets: Tensor) -> None:
        """Targets are class indices from 0, the ignored one aside, or probabilities."""
        if targets.is_floating_point():
            if float(targets.min()) < 0:
                raise DataError(
                    f"loss {self.name!r}: targets are class indices (integers) or probabilities; "
                    f"found {float(targets.min()):g}"
                )
            return
        counted = targets[self.counted(targets)]
        if counted.numel() and int(counted.min()) < 0:
            raise DataError(
                f"loss {self.name!r}: class indices start at 0; found {int(counted.min())}. Where that stands for "
                f"'no label', say so with ignore_index (now {self.options.ignore_index})"
            )

    def counted(self, targets: Tensor) -> Tensor:
        """All but those of ``ignore_index``; probabilities all."""
        import torch

        if targets.is_floating_point():
            return torch.ones_like(targets, dtype=torch.bool)
        counts: Tensor = targets.long() != self.options.ignore_index
        return counts

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum of the terms."""
        return self._reduced(outputs, targets, "sum")

    def totals(self, outputs: Tensor, targets: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """With the classes before the examples: along the last axis torch takes exponentials one by one."""
        import torch

        if outputs.ndim < 3:
            return super().totals(outputs, targets, dtype)
        turned = outputs.transpose(1, 2)
        classes_first = torch.empty(turned.shape, dtype=dtype or outputs.dtype, device=outputs.device).copy_(
            turned
        )
        probabilities = targets.shape == outputs.shape[1:]
        theirs = targets.transpose(0, 1) if probabilities else targets
        terms = self._reduced(classes_first, theirs.expand(len(outputs), *theirs.shape), "none")
        return terms.flatten(1).sum(1)

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Torch's own mean, which on CUDA need not wait for a count."""
        return self._reduced(outputs, targets, "mean")

    def _reduced(self, outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        import torch
        import torch.nn.functional as F

        # In bfloat16 the sum over a batch would keep three digits, in float16 overflow.
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        targets = self._taken(outputs, targets)
        try:
            return F.cross_entropy(
                outputs,
                targets,
                weight=self._weight(outputs),
                ignore_index=self.options.ignore_index,
                reduction=reduction,
                label_smoothing=self.options.label_smoothing,
            )
        except IndexError:
            counted = targets[self.counted(targets)]
            raise DataError(
                f"loss {self.name!r}: the network has {outputs.shape[1]} classes, so class indices go from 0 to "
                f"{outputs.shape[1] - 1}; found {int(counted.min())} to {int(counted.max())} (ignore_index is "
                f"{self.options.ignore_index})"
            ) from None

    def _taken(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The targets in the type that torch takes.

        Raises:
            DataError: If their shape does not fit the logits.
        """
        if outputs.ndim < 2:
            raise DataError(
                f"loss {self.name!r}: the outputs have shape {tuple(outputs.shape)}, but logits have an axis of "
                "classes, (examples, classes, …). For one number per example, use 'bce_with_logits' (two classes) or "
                "'mse' (values)"
            )
        refuse_no_tensor(self, targets)
        probabilities = targets.is_floating_point()
        wanted = outputs.shape if probabilities else outputs.shape[:1] + outputs.shape[2:]
        if targets.shape == wanted:
            return targets.to(outputs.dtype) if probabilities else targets.long()
        advice = ""
        if probabilities and targets.shape == outputs.shape[:1] + outputs.shape[2:]:
            advice = "; class indices are integers: use targets.long()"
        elif targets.numel() == wanted.numel():
            advice = (
                f"; labels in a column: use targets.reshape{tuple(wanted)}, or squeeze the axis of length 1"
            )
        elif targets.ndim == outputs.ndim and bool((targets.sum(1) == 1).all()):
            advice = "; one-hot rows: use targets.argmax(1)"
        raise DataError(
            f"loss {self.name!r}: logits of {outputs.shape[1]} classes of shape {tuple(outputs.shape)} need "
            f"{'probabilities' if probabilities else 'class indices'} of shape {tuple(wanted)}; found "
            f"{targets.dtype} of shape {tuple(targets.shape)}{advice}"
        )

    def normaliser(self, outputs: Tensor, targets: Tensor) -> float:
        """Number of targets that count, or the sum of their classes' weights."""
        if targets.is_floating_point():
            return float(outputs.numel() // outputs.shape[1])
        counted = self.counted(targets)
        weight = self._weight(outputs)
        if weight is None:
            return float(counted.sum())
        return float(weight.double()[targets[counted].long()].sum())

    def ggn_rank(self, outputs: Tensor, targets: Tensor) -> int:
        """Classes − 1 for every position."""
        return (outputs.shape[1] - 1) * (outputs.numel() // (outputs.shape[0] * outputs.shape[1]))

    def ggn_factor(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """Columns of the Cholesky factor of m (diag(p) − ppᵀ), position by position.

        m is the target mass of a term (1 without class weights). The matrix has rank C − 1 and its factor a
        closed form: with r_j the probability beyond class j, L_jj² = p_j r_j / r_{j−1} and
        L_ij = −p_i √(p_j / (r_{j−1} r_j)) for i > j. Reference: Tanabe & Sagae (1992), for multinomial
        covariances. Sums over the tail, not one minus the head, keep r exact when one class has nearly all.
        """
        import torch

        n, classes = outputs.shape[:2]
        p = outputs.to(torch.promote_types(outputs.dtype, torch.float32)).softmax(1).reshape(n, classes, -1)
        scale = self._mass(outputs, targets).to(p).sqrt()
        tail = p.flip(1).cumsum(1).flip(1)
        before, after = tail[:, :-1], tail[:, 1:].sqrt()
        # A tail that has underflowed to 0 has nothing left to share: what divides by it stands for 0.
        share = scale.unsqueeze(1) * (p[:, :-1] / before).sqrt().nan_to_num(0.0)
        diagonal, below = share * after, -(share / after).nan_to_num(0.0, posinf=0.0)
        for position in range(p.shape[2]):
            for j in range(classes - 1):
                column = torch.zeros_like(p)
                column[:, j, position] = diagonal[:, j, position]
                torch.mul(
                    p[:, j + 1 :, position],
                    below[:, j, position].unsqueeze(1),
                    out=column[:, j + 1 :, position],
                )
                yield column.reshape(outputs.shape).to(outputs.dtype)

    def term_gradients(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """Mass times p minus the smoothed, weighted targets; one position at a time."""
        (whole,) = super().term_gradients(outputs, targets)
        for column in apart(whole.reshape(*outputs.shape[:2], -1)):
            yield column.reshape(outputs.shape)

    def term_count(self, outputs: Tensor, targets: Tensor) -> int:
        """Positions of an example."""
        return outputs.numel() // (outputs.shape[0] * outputs.shape[1])

    def draw(self, outputs: Tensor, targets: Tensor, generator: Generator) -> Tensor:
        """√m (p − e_y), y drawn from p at every position; m is the target mass of a term.

        All positions share the column: their labels are independent, so that products of different
        positions vanish on average.
        """
        import torch

        n, classes = outputs.shape[:2]
        p = outputs.to(torch.promote_types(outputs.dtype, torch.float32)).softmax(1).reshape(n, classes, -1)
        head = p.double().cumsum(1)
        uniform = torch.rand(n, 1, p.shape[2], generator=generator, dtype=torch.float64, device="cpu").to(
            p.device
        )
        drawn = (head <= uniform * head[:, -1:]).sum(1, keepdim=True).clamp_(max=classes - 1)
        column = p.scatter_add(1, drawn, -torch.ones_like(p[:, :1]))
        column = column * self._mass(outputs, targets).to(p).sqrt().unsqueeze(1)
        return column.reshape(outputs.shape).to(outputs.dtype)

    def predictions(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and labels, of probabilities the likeliest class; ignored targets left out."""
        truth = (targets.argmax(1) if targets.is_floating_point() else targets.long()).flatten()
        counted = truth != self.options.ignore_index
        return outputs.movedim(1, -1).reshape(-1, outputs.shape[1])[counted], truth[counted]

    def errors(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        """Wrong and all predictions, by the largest logit; ignored targets do not count."""
        truth = targets.argmax(1) if targets.is_floating_point() else targets.long()
        counted = truth != self.options.ignore_index
        return ((outputs.argmax(1) != truth) & counted).sum(), int(counted.sum())

    def _weight(self, outputs: Tensor) -> Tensor | None:
        import torch

        if self.options.weight is None:
            return None
        dtype = torch.promote_types(outputs.dtype, torch.float32)
        return torch.tensor(self.options.weight, dtype=dtype, device=outputs.device)

    def _mass(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum of the smoothed, weighted target distribution of each term, ``[N, positions]``."""
        import torch

        n, classes = outputs.shape[:2]
        smoothing = self.options.label_smoothing
        weight = self._weight(outputs)
        w = torch.ones(classes, device=outputs.device) if weight is None else weight
        if targets.is_floating_point():
            soft = targets.reshape(n, classes, -1)
            soft = (1 - smoothing) * soft + smoothing / classes
            return torch.einsum("nct,c->nt", soft, w.to(soft))
        flat = targets.reshape(n, -1).long()
        counted = flat != self.options.ignore_index
        own = w[flat * counted]  # an ignored target need not be a class
        mass: Tensor = ((1 - smoothing) * own + smoothing * w.mean()) * counted
        return mass
