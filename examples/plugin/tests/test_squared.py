import pytest
import torch
from prunekit_squared import Squared

import prunekit as pk
from prunekit.testing import CriterionContract


class TestSquared(CriterionContract):
    @pytest.fixture(params=[2.0, 0.5])
    def criterion(self, request: pytest.FixtureRequest) -> Squared:
        return Squared(power=request.param)


def test_power_two_is_the_square_of_the_linear_model() -> None:
    model = torch.nn.Linear(6, 3, dtype=torch.float64)
    batches = [(torch.randn(20, 6, dtype=torch.float64), torch.randint(3, (20,)))]
    squared, linear = pk.saliency(model, batches, Squared()), pk.saliency(model, batches, "lm")
    torch.testing.assert_close(squared["weight"], linear["weight"] ** 2)


def test_ranks_as_the_linear_model_does() -> None:
    model = torch.nn.Linear(6, 3)
    twin = torch.nn.Linear(6, 3)
    twin.load_state_dict(model.state_dict())
    batches = [(torch.randn(20, 6), torch.randint(3, (20,)))]
    masks = pk.prune(model, batches, Squared(), sparsity=0.5, steps=1).masks
    assert torch.equal(masks["weight"], pk.prune(twin, batches, "lm", sparsity=0.5, steps=1).masks["weight"])
