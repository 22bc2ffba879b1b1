"""Does anything that is known before fine-tuning tell more of its outcome than the change of the loss?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunekit.ranks import interval, spearman
from prunekit.reproduction.evidence import CONFIDENCE, RESAMPLES, Estimate
from prunekit.reproduction.measured import Measured

Floats = NDArray[np.float64]

BASELINE = "loss change"
_RIDGE = 1.0


@dataclass(frozen=True)
class Prediction:
    """How well some numbers tell the error after fine-tuning of a criterion that they have not seen.

    Attributes:
        name: Which numbers.
        correlation: Spearman's, of predictions and outcomes.
        better: By how much that is higher than for the loss change alone; ``None`` for that itself.
        error: Mean absolute error, in points.
    """

    name: str
    correlation: Estimate
    better: Estimate | None
    error: float


def leave_one_criterion_out(runs: Sequence[Measured]) -> list[Prediction]:
    """Predict each criterion's outcomes from all others', by ridge regression on numbers and their squares.

    Args:
        runs: Those with an error after fine-tuning count; kinds of numbers that not all of them have are left out.

    Returns:
        A row for each kind of number, and one for all together; none if there are fewer than three criteria.
    """
    runs = [run for run in runs if np.isfinite(run.values.get("test_gap", np.nan))]
    criteria = np.array([run.criterion for run in runs])
    if len(set(criteria)) < 3:
        return []
    outcome = np.array([run.values["test_gap"] for run in runs])
    kinds = [k for k in runs[0].before if all(k in r.before and np.isfinite(r.before[k]).all() for r in runs)]
    sets = {kind: [kind] for kind in kinds} | {"all of these": kinds}
    predicted = {name: _predicted(runs, some, criteria, outcome) for name, some in sets.items()}
    draws = np.random.default_rng(0).integers(0, len(runs), (RESAMPLES // 10, len(runs)))
    base = _correlations(predicted[BASELINE], outcome, draws)
    found = []
    for name, values in predicted.items():
        correlations = _correlations(values, outcome, draws)
        better = None
        if name != BASELINE:
            difference = correlations - base
            better = Estimate(float(difference[0]), *interval(difference[1:], CONFIDENCE), len(runs))
        whole = Estimate(float(correlations[0]), *interval(correlations[1:], CONFIDENCE), len(runs))
        found.append(Prediction(name, whole, better, float(np.abs(values - outcome).mean())))
    return found


def _predicted(
    runs: Sequence[Measured], kinds: Sequence[str], criteria: NDArray[np.str_], outcome: Floats
) -> Floats:
    columns = np.array([[v for kind in kinds for v in run.before[kind]] for run in runs])
    predicted = np.empty(len(runs))
    for criterion in dict.fromkeys(criteria):
        out = criteria == criterion
        centre, scale = columns[~out].mean(0), columns[~out].std(0)
        standard = (columns - centre) / np.where(scale > 0, scale, 1.0)
        features = np.concatenate([standard, standard**2], axis=1)
        middle, level = features[~out].mean(0), outcome[~out].mean()
        a = features[~out] - middle
        weights = np.linalg.solve(a.T @ a + _RIDGE * np.eye(a.shape[1]), a.T @ (outcome[~out] - level))
        predicted[out] = (features[out] - middle) @ weights + level
    return predicted


def _correlations(predicted: Floats, outcome: Floats, draws: NDArray[np.int64]) -> Floats:
    """Spearman's correlation: of all runs, and of those of each draw."""
    generator = np.random.default_rng(0)
    whole = [np.arange(len(outcome)), *draws]
    return np.array(
        [spearman(predicted[some], outcome[some], generator, 0, CONFIDENCE).value for some in whole]
    )
