"""The built-in networks are those of the paper."""

import pytest
import torch

from prunekit import DataInfo
from prunekit.masks.prunable import prunable_parameters
from prunekit_plugins.models.lenet5 import LeNet5
from prunekit_plugins.models.mlp import MLP
from prunekit_plugins.models.preact_resnet18 import PreActResNet18
from prunekit_plugins.models.vgg11 import VGG11

MNIST = DataInfo((1, 28, 28), 10, "classification")
CIFAR = DataInfo((3, 32, 32), 10, "classification")


@pytest.mark.parametrize(
    ("component", "data", "prunable", "everything"),
    [
        (MLP(), MNIST, 266_200, 266_610),
        (VGG11(), CIFAR, 9_747_136, 9_750_922),
        (PreActResNet18(), CIFAR, 11_164_352, 11_172_180),
        (LeNet5(), MNIST, 61_470, 61_706),
    ],
    ids=["mlp", "vgg11", "preact_resnet18", "lenet5"],
)
def test_networks_have_the_published_number_of_weights(component, data, prunable, everything):
    model = component.build(data)

    assert sum(p.numel() for p in prunable_parameters(model).values()) == prunable
    assert sum(p.numel() for p in model.parameters()) == everything
    assert model.eval()(torch.zeros(2, *data.input_shape)).shape == (2, 10)


def test_the_multilayer_perceptron_names_its_tensors_in_layer_order():
    names = [name for name, _ in MLP(hidden=(4, 3)).build(MNIST).named_parameters()]

    assert names == ["fc.0.weight", "fc.0.bias", "fc.1.weight", "fc.1.bias", "fc.2.weight", "fc.2.bias"]


def test_weights_are_kaiming_normal_and_biases_zero():
    torch.manual_seed(0)
    model = MLP().build(MNIST)

    assert model.fc[0].weight.std().item() == pytest.approx((2 / 784) ** 0.5, rel=0.01)
    assert not model.fc[0].bias.any()


def test_batch_norm_is_optional_for_vgg():
    model = VGG11(batch_norm=True).build(CIFAR)

    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules()) == 8
