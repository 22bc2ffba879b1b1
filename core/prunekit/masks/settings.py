"""The ``prunable`` mapping of a spec."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from prunekit.component import Options

AUTO = "auto"
"""In place of name patterns of blocks: those of a transformer, as they are found."""


class Prunable(Options):
    """Changes the set of prunable weights.

    Attributes:
        include: Name patterns (``*``, ``?``, ``[...]``); if given, only parameters that match one are prunable,
            in any layer. Default: the matrices that multiply inputs, of linear, convolution, attention and
            recurrent layers and of stacked experts; not those that embed, route or adapt (``lora_*``).
        exclude: Name patterns of parameters that are not prunable.
        biases: Include biases.
        norms: Include the parameters of norms, of whatever class; ``include`` alone does not.
        preset: ``transformer_blocks``: all matrices of a transformer's blocks, and nothing outside them: no embedding, no
            head; no router or adapter either.

    Never prunable: parts that a weight is computed from at every pass (``weight_norm``, parametrised layers), complex
    numbers, integers, and what has no elements.
    """

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    biases: bool = False
    norms: bool = False
    preset: Literal["transformer_blocks"] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.preset is not None and self.include is not None:
            raise ValueError("include and preset both say what is prunable; give one of them")
        return self
