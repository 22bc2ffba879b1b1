"""Networks: architectures that are built to fit the data."""

from prunekit import Model, hookimpl
from prunekit_plugins.models.hf import HuggingFace
from prunekit_plugins.models.lenet5 import LeNet5
from prunekit_plugins.models.mlp import MLP
from prunekit_plugins.models.preact_resnet18 import PreActResNet18
from prunekit_plugins.models.python import PythonModel
from prunekit_plugins.models.timm import Timm
from prunekit_plugins.models.vgg11 import VGG11


@hookimpl
def prunekit_register_models() -> list[type[Model]]:
    """Return the classes of the built-in models, to be registered when plugins are loaded."""
    return [MLP, LeNet5, VGG11, PreActResNet18, HuggingFace, Timm, PythonModel]
