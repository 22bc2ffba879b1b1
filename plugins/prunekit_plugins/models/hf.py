"""Networks of Hugging Face's transformers, from a folder on disk."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prunekit import Model, Options, PrunekitWarning, Skeleton, SpecError
from prunekit_plugins._extra import extra

if TYPE_CHECKING:
    from torch import nn

    from prunekit import DataInfo

_CLASSES = {
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "image_classification": "AutoModelForImageClassification",
}

Task = Literal[
    "causal_lm",
    "masked_lm",
    "seq2seq_lm",
    "sequence_classification",
    "token_classification",
    "image_classification",
]


class HuggingFaceOptions(Options):
    """Options.

    Attributes:
        path: A folder with ``config.json`` and weights, as ``save_pretrained`` writes it; possibly in several files.
        task: Which head the network has; null = the one that the folder's configuration names.
        dtype: Type in which the network is loaded and the run computes; null = the run's own ``dtype``.
    """

    path: Path
    task: Task | None = None
    dtype: Literal["float32", "float64", "bfloat16"] | None = None


class HuggingFace(Model):
    """A transformers network with its trained weights, from a folder.

    Nothing is downloaded, and no code of the folder runs. Weights that the folder lacks (a new head) are drawn at random,
    with a warning. Needs ``prunekit[hf]``.
    """

    name = "hf"
    Options = HuggingFaceOptions
    sets_dtype = True

    def build(self, data: DataInfo) -> nn.Module:
        """Load the network.

        Raises:
            SpecError: If the folder holds no network for the task, or transformers is not installed.
        """
        import torch

        from prunekit.network import without_bars

        path: Path = self.options.path
        architecture = _architecture(path)
        transformers = extra("transformers", "hf", "model 'hf'")
        task: Task | None = self.options.task
        loader = getattr(transformers, _CLASSES[task] if task else architecture, None)
        if loader is None or (task is None and not architecture):
            raise SpecError(
                f"model 'hf': {path}: its configuration names no transformers network ({architecture or 'nothing'}); "
                f"give task: {', '.join(_CLASSES)}"
            )
        try:
            with without_bars():
                model, found = loader.from_pretrained(
                    path,
                    local_files_only=True,
                    trust_remote_code=False,  # else it would ask, at a terminal
                    output_loading_info=True,
                    dtype=getattr(torch, self.options.dtype or "float32"),
                )
        except Exception as error:  # transformers raises many kinds for folders that do not fit
            reason = str(error).strip().splitlines()
            raise SpecError(
                f"model 'hf': {path}: cannot be loaded for task {task or architecture}: {reason[0] if reason else error!r}"
            ) from error
        _tell_missing(path, found)
        if hasattr(model.config, "use_cache"):
            model.config.use_cache = False  # keys and values of earlier tokens, which nobody asks for here
        network: nn.Module = model.eval()
        return network

    def skeleton(self) -> Skeleton:
        """The network without weights, and its folder.

        Raises:
            SpecError: As :meth:`build`.
        """
        path: Path = self.options.path
        architecture = _architecture(path)
        transformers = extra("transformers", "hf", "model 'hf'")
        task: Task | None = self.options.task
        loader = getattr(transformers, _CLASSES[task] if task else architecture, None)
        if loader is None:
            raise SpecError(
                f"model 'hf': {path}: names no transformers network ({architecture or 'nothing'}); give task"
            )
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        if hasattr(config, "use_cache"):
            config.use_cache = False
        with _without_weights():
            network: nn.Module = loader.from_config(config) if task else loader(config)
        tie: Callable[[], None] = getattr(network, "tie_weights", lambda: None)
        tie()
        return Skeleton(network.eval(), path)


@contextmanager
def _without_weights() -> Iterator[None]:
    """Modules that are made within it have their parameters on the device ``meta``, and their buffers as ever."""
    import torch
    from torch import nn

    own = nn.Module.register_parameter

    def register(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        own(self, name, parameter)
        if parameter is not None:
            self._parameters[name] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)

    with torch.device("cpu"):
        setattr(nn.Module, "register_parameter", register)  # noqa: B010 (a type checker has its own view of methods)
        try:
            yield
        finally:
            setattr(nn.Module, "register_parameter", own)  # noqa: B010


def _architecture(path: Path) -> str:
    """The class that a folder's configuration names; empty if none.

    Raises:
        SpecError: If the folder has no configuration.
    """
    config = path / "config.json"
    if not config.is_file():
        found = (
            "is a file"
            if path.is_file()
            else "is not a folder"
            if not path.is_dir()
            else "holds no config.json"
        )
        raise SpecError(
            f"model 'hf': {path}: {found}; accepted is a folder that save_pretrained wrote, already on this machine: "
            "prunekit downloads nothing"
        )
    try:
        names = json.loads(config.read_text(encoding="utf-8")).get("architectures") or [""]
    except (OSError, ValueError, AttributeError) as error:
        raise SpecError(f"model 'hf': {config}: cannot be read: {error}") from None
    return str(names[0])


def _tell_missing(path: Path, found: Any) -> None:
    missing = sorted(found["missing_keys"])
    if missing:
        some = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        warnings.warn(
            f"model 'hf': {path} holds no weights for {some}, which are drawn at random; train them before anything "
            "is pruned",
            PrunekitWarning,
            stacklevel=3,
        )
