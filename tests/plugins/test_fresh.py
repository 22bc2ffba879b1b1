"""The probe ``fresh``: what a step does to the loss of examples that it was not made on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
import torch

import prunekit as pk
from prunekit.network.measure import measure
from prunekit.plugins.build import as_loss


def prune(**changes: Any) -> dict[str, Any]:
    return {
        "criterion": "obs_rows",
        "scheduler": {"name": "linear", "sparsity": 0.6, "steps": 3},
        "examples": 50,
        **changes,
    }


def test_it_is_the_change_of_the_loss_on_other_training_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunekit_plugins.probes.fresh import Fresh

    by_hand: list[float] = []
    original = Fresh.measure

    def watched(self: Fresh, moment: Any, generator: Any) -> pk.ProbeRecord:
        x, y = moment.fresh[0]
        losses = [
            measure(moment._model, [(x, y)], as_loss("cross_entropy"), weights)[0]
            for weights in (moment.before(), moment.after())
        ]
        by_hand.append(losses[1] - losses[0])
        assert len(y) == len(moment.sample[0][1]) == 50
        return original(self, moment, generator)

    monkeypatch.setattr(Fresh, "measure", watched)
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, prune=prune(), probes=["fresh"], finetune=None)
    with pk.run(spec, tmp_path / "run.h5") as results:
        found = results.probe("fresh")["fresh"]["delta_loss"]
        own = [step["delta_loss"] for step in results.summary["steps"]]
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)
    assert not np.allclose(found, own)


def test_it_does_not_change_the_run(tmp_path: Path) -> None:
    running.write_data(tmp_path / "data.npz")
    for name, probes in (("with", ["fresh"]), ("without", [])):
        spec = running.mapping(tmp_path, prune=prune(), probes=probes)
        pk.run(spec, tmp_path / f"{name}.h5").close()
    one, other = (running.contents(tmp_path / f"{name}.h5") for name in ("with", "without"))
    for key in ("masks/gone", "steps/delta_loss", "examples/indices", "weights/finetuned/fc.0.weight"):
        assert one[key] == other[key]


@pytest.mark.parametrize(
    ("changes", "moments", "message"),
    [
        ({"examples": None}, None, "no examples besides those of the step"),
        ({}, ["pruned"], "measures steps"),
    ],
    ids=["all", "pruned"],
)
def test_where_there_is_nothing_to_measure_it_says_what_would_be(
    changes: dict[str, Any], moments: list[str] | None, message: str, tmp_path: Path
) -> None:
    running.write_data(tmp_path / "data.npz")
    probe = {"name": "fresh"} | ({"moments": moments} if moments else {})
    spec = running.mapping(tmp_path, prune=prune(**changes), probes=[probe])
    with pytest.raises(pk.DataError, match=message):
        pk.run(spec, tmp_path / "run.h5")


def test_a_moment_that_is_over_has_no_fresh_examples() -> None:
    kept: list[pk.Moment] = []

    class Keeping(pk.Scheduler):
        name = "keeping"

        def levels(self) -> list[float]:
            return [0.5]

    from prunekit.observing.moment import Surroundings
    from prunekit.plugins.build import component, estimators
    from prunekit.pruning.sample import Sample
    from prunekit.pruning.step import Pruner

    model = torch.nn.Linear(4, 3)
    batch = (torch.randn(6, 4), torch.randint(3, (6,)))
    around = Surroundings(model, as_loss("cross_entropy"), estimators)
    pruner = Pruner(around, component("criterion", "lm"), Keeping(), component("selector", "global"))
    sample = Sample([batch], torch.Generator(), lambda: [batch])
    for outcome in pruner.outcomes(lambda index: sample):
        assert isinstance(outcome.moment, pk.StepMoment)
        assert outcome.moment.fresh is not None
        kept.append(outcome.moment)
    with pytest.raises(pk.RunError, match="is over"):
        kept[0].fresh  # noqa: B018
