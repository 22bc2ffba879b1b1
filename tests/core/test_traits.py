"""Networks with one awkward trait each: numbers are the oracle's, or the network is refused and left as it was."""

from __future__ import annotations

import pytest
from traits import INPUTS, TRAITS, measures_its_own_change_or_refuses, right_or_refused

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of what is awkward here


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("trait", TRAITS)
def test_a_network_with_a_trait_is_right_or_refused(trait, inputs) -> None:
    right_or_refused(trait, inputs, "cpu")


@pytest.mark.parametrize("criterion", ["magnitude", "qm", "obs_rows"])
@pytest.mark.parametrize("trait", TRAITS)
def test_pruning_a_network_with_a_trait_measures_its_own_change_or_refuses(trait, criterion) -> None:
    measures_its_own_change_or_refuses(trait, criterion, "cpu")
