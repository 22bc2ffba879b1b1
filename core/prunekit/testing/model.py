"""What every model promises: a network for the data it is given, the same from the same seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn

from prunekit.data import DataInfo, Model
from prunekit.errors import SpecError
from prunekit.masks.prunable import prunable_parameters
from prunekit.network.call import call
from prunekit.testing import component as common
from prunekit.testing.guard import same, untouched
from prunekit.testing.verdict import Subject, demand, not_applicable

Under = Subject[Model]

DATA = (
    DataInfo((6,), 3, "classification"),
    DataInfo((1, 28, 28), 10, "classification"),
    DataInfo((3, 32, 32), 10, "classification"),
    DataInfo((6,), 2, "regression"),
)
"""Data that models are asked to fit; they refuse what they cannot."""
_MOST = 2  # networks of a model; more would tell nothing more


def builds_a_network_or_refuses_by_a_spec_error(subject: Under) -> None:
    """For vectors and for images of usual sizes."""
    built = list(_built(subject))
    for data, network in built:
        demand(isinstance(network, nn.Module), f"{data}: returned {type(network).__name__}, not an nn.Module")


def networks_are_fresh_on_the_cpu_in_float32_and_finite(subject: Under) -> None:
    """In training mode, all parameters to be trained."""
    for data, network in _built(subject):
        for name, t in [*network.named_parameters(), *network.named_buffers()]:
            demand(t.device.type == "cpu", f"{data}: {name} is on {t.device}")
            if t.is_floating_point():
                demand(t.dtype == torch.float32, f"{data}: {name} is {t.dtype}")
                demand(bool(t.isfinite().all()), f"{data}: {name} is not finite")
        demand(network.training, f"{data}: is not in training mode")


def the_same_seed_builds_the_same_network(subject: Under) -> None:
    """From torch's random state and no other; also when built from the options."""
    rebuilt = type(subject.component).from_options(subject.component.options)
    for data, network in _built(subject):
        again = _build(rebuilt, data)
        first, second = _state(network), _state(again)
        demand(list(first) == list(second), f"{data}: other parameters when built again")
        for name, value in first.items():
            demand(same(value, second[name]), f"{data}: {name} differs when built again from the same seed")
        shared = {p.data_ptr() for p in network.parameters() if p.numel()}
        demand(
            not shared & {p.data_ptr() for p in again.parameters() if p.numel()},
            f"{data}: two networks share their parameters",
        )


def outputs_have_the_shape_of_the_data(subject: Under) -> None:
    """One row per example, of as many outputs as the data ask for; the same in eval mode when run again."""
    for data, network in _built(subject):
        inputs = _inputs(data)
        network.eval()
        with torch.no_grad(), untouched([inputs], network):
            first, second = call(network, inputs), call(network, inputs)
        demand(
            first.shape[0] == len(inputs) and first.flatten(1).shape[1] == data.outputs,
            f"{data}: outputs of shape {tuple(first.shape)}",
        )
        demand(bool(first.isfinite().all()), f"{data}: outputs are not finite")
        demand(same(first, second), f"{data}: outputs differ in eval mode when it is run again")
        network.train()


def examples_do_not_influence_each_other_in_eval_mode(subject: Under) -> None:
    """The loss is a mean over examples."""
    for data, network in _built(subject):
        inputs = _inputs(data).double()
        alone = _build(subject.component, data).double().eval()
        with torch.no_grad():
            together, apart = call(alone, inputs), torch.cat([call(alone, x[None]) for x in inputs])
        demand(
            torch.allclose(together, apart, rtol=1e-6, atol=1e-8),
            f"{data}: an example's outputs depend on the others in its batch",
        )
        del network


def there_is_something_to_prune(subject: Under) -> None:
    """A weight of a linear or convolutional layer."""
    for data, network in _built(subject):
        try:
            prunable_parameters(network)
        except SpecError as error:
            demand(False, f"{data}: {error}")


def a_state_restores_the_network(subject: Under) -> None:
    """Parameters and buffers, into one built from another seed."""
    for data, network in _built(subject):
        other = _build(subject.component, data, seed=1)
        other.load_state_dict(network.state_dict())
        inputs = _inputs(data)
        for one in (network, other):
            one.eval()
        with torch.no_grad():
            expected, restored = call(network, inputs), call(other, inputs)
        network.train()
        demand(same(restored, expected), f"{data}: another network with the same state gives other outputs")


def building_leaves_the_process_alone(subject: Under) -> None:
    """But for torch's random state, which is seeded for it."""
    for data, _ in _built(subject):
        with untouched(but="torch's random state"):
            subject.component.build(data)


CHECKS = (
    *common.CHECKS,
    builds_a_network_or_refuses_by_a_spec_error,
    networks_are_fresh_on_the_cpu_in_float32_and_finite,
    the_same_seed_builds_the_same_network,
    outputs_have_the_shape_of_the_data,
    examples_do_not_influence_each_other_in_eval_mode,
    there_is_something_to_prune,
    a_state_restores_the_network,
    building_leaves_the_process_alone,
)


def _built(subject: Under) -> Iterator[tuple[DataInfo, nn.Module]]:
    answer = _accepted(subject.component)
    if isinstance(answer, str):
        not_applicable(f"refuses all data that are tried here: {answer}")
    yield from answer


@lru_cache(maxsize=4)
def _accepted(model: Model) -> list[tuple[DataInfo, nn.Module]] | str:
    """The first networks that a model builds, for all its checks; or its refusal."""
    networks: list[tuple[DataInfo, nn.Module]] = []
    refusal = ""
    for data in DATA:
        try:
            networks.append((data, _build(model, data)))
        except SpecError as error:
            refusal = str(error)
        if len(networks) == _MOST:
            break
    shapes = [
        [p.shape for p in network.parameters()] for _, network in networks if isinstance(network, nn.Module)
    ]
    if len(shapes) == _MOST and shapes[0] == shapes[1]:  # one network, whatever the data: a factory's
        networks = [(data, network) for data, network in networks if _fits(network, data)]
        refusal = "builds one network for all data, and it fits none of these"
    return networks or refusal


def _fits(network: nn.Module, data: DataInfo) -> bool:
    network.eval()
    try:
        with torch.no_grad():
            outputs = call(network, _inputs(data))
    except RuntimeError:  # torch's, where shapes do not fit
        return False
    finally:
        network.train()
    return outputs.flatten(1).shape[1] == data.outputs


def _build(model: Model, data: DataInfo, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model.build(data)


def _inputs(data: DataInfo) -> Tensor:
    return torch.randn(3, *data.input_shape, generator=torch.Generator().manual_seed(0))


def _state(network: nn.Module) -> Mapping[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
