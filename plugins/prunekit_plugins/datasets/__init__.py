"""Data sets: whole splits of examples, from files or made on the spot."""

from prunekit import Dataset, hookimpl
from prunekit_plugins.datasets.cifar10 import CIFAR10
from prunekit_plugins.datasets.digits import Digits
from prunekit_plugins.datasets.gaussians import Gaussians
from prunekit_plugins.datasets.hf_dataset import HuggingFaceDataset
from prunekit_plugins.datasets.image_folder import ImageFolder
from prunekit_plugins.datasets.mnist import MNIST, FashionMNIST
from prunekit_plugins.datasets.monks import Monks
from prunekit_plugins.datasets.npz import Arrays
from prunekit_plugins.datasets.python import PythonDataset
from prunekit_plugins.datasets.text import Text
from prunekit_plugins.datasets.xor import XOR


@hookimpl
def prunekit_register_datasets() -> list[type[Dataset]]:
    """Return the classes of the built-in data sets, to be registered when plugins are loaded."""
    own = [Arrays, Text, HuggingFaceDataset, ImageFolder, PythonDataset]
    return [Digits, MNIST, FashionMNIST, CIFAR10, Monks, XOR, Gaussians, *own]
