"""Architectures of the library timm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunekit import Model, Options, SpecError
from prunekit_plugins._extra import extra

if TYPE_CHECKING:
    from torch import nn

    from prunekit import DataInfo


class TimmOptions(Options):
    """Options.

    Attributes:
        model: The architecture's name, as ``timm.create_model`` takes it.
        kwargs: Further arguments of the architecture.
    """

    model: str
    kwargs: dict[str, Any] = {}


class Timm(Model):
    """A network of timm for the data's classes and channels, without weights: ``checkpoint`` gives them.

    Nothing is downloaded. Needs ``prunekit[timm]``.
    """

    name = "timm"
    Options = TimmOptions

    def build(self, data: DataInfo) -> nn.Module:
        """Build the network.

        Raises:
            SpecError: If timm is not installed or does not import, or has no such architecture.
        """
        timm = _imported()
        name: str = self.options.model
        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name}*")[:6])
            raise SpecError(
                f"model.model: timm has no architecture {name!r}{f'; it has {near}' if near else ''}"
            )
        given = {"num_classes": data.outputs, "in_chans": data.input_shape[0], **self.options.kwargs}
        try:
            network: nn.Module = timm.create_model(name, pretrained=False, **given)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise SpecError(f"model 'timm': {name} with {given} cannot be built: {error}") from error
        return network


def _imported() -> Any:
    """The library, or what keeps it from being imported: most often a torchvision that is missing or of another torch."""
    import torch

    try:
        return extra("timm", "timm", "model 'timm'")
    except SpecError:
        raise
    except (
        ImportError,
        RuntimeError,
        OSError,
    ) as error:  # as torchvision fails; torch's own errors are RuntimeErrors
        raise SpecError(
            f"model 'timm': timm cannot be imported: {error}. It needs the torchvision that was built for the torch here "
            f"({torch.__version__}); docs/huggingface.md says how to get it"
        ) from error
