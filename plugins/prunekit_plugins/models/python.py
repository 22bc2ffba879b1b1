"""A network of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from prunekit import Model, Options, SpecError
from prunekit.plugins import call_from

if TYPE_CHECKING:
    from torch import nn

    from prunekit import DataInfo


class PythonOptions(Options):
    """Options.

    Attributes:
        factory: ``package.module:function``; called with ``kwargs``, returns an ``nn.Module``.
        kwargs: Keyword arguments.
    """

    factory: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    kwargs: dict[str, Any] = {}


class PythonModel(Model):
    """Whatever a user's function returns. Modules are also found in the current folder."""

    name = "python"
    Options = PythonOptions
    runs_code = True

    def build(self, data: DataInfo) -> nn.Module:
        """Import and call the factory."""
        from torch import nn

        model = call_from(self.options.factory, self.options.kwargs, "model")
        if not isinstance(model, nn.Module):
            raise SpecError(
                f"model.factory: {self.options.factory} returned {type(model).__name__}, not an nn.Module"
            )
        return model
