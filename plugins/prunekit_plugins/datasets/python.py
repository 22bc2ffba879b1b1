"""Data of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from prunekit import Dataset, Options, SpecError
from prunekit.plugins import call_from

if TYPE_CHECKING:
    from prunekit import Splits


class PythonOptions(Options):
    """Options.

    Attributes:
        factory: ``package.module:function``; called with ``kwargs``, returns a :class:`prunekit.Splits`.
        kwargs: Keyword arguments.
    """

    factory: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    kwargs: dict[str, Any] = {}


class PythonDataset(Dataset):
    """Whatever a user's function returns. Modules are also found in the current folder."""

    name = "python"
    Options = PythonOptions
    runs_code = True

    def load(self, seed: int) -> Splits:
        """Import and call the factory."""
        from prunekit import Splits

        splits = call_from(self.options.factory, self.options.kwargs, "dataset")
        if not isinstance(splits, Splits):
            raise SpecError(
                f"dataset.factory: {self.options.factory} returned {type(splits).__name__}, not a prunekit.Splits"
            )
        return splits
