"""Claims that the file alone can tell: masks, counts, and numbers that have to be other numbers' sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from prunekit.records import Row
from prunekit.results import Results
from prunekit.runs.verification.claims import Claim, close, differs, holds, steps, unchecked

_PARTS = ("linear", "diagonal", "off_diagonal", "ggn_to_hessian", "higher_order")
_ROUNDING = {"float64": 2.0**-36, "float32": 2.0**-16}  # what is no difference, relative
_COARSE = 2.0**-5  # in types of fewer digits


def of_masks(results: Results) -> Iterator[Claim]:
    """Masks that nest and are those that the columns count, and weights that are zero where they prune."""
    rows = results.summary["steps"]
    if not rows:
        return
    revived, miscounted, wrong_layers = [], [], []
    before = results.masks(0)
    for row in rows:
        masks, step = results.masks(row["step"]), row["step"]
        if any((mask & ~before[name]).any() for name, mask in masks.items()):
            revived.append(step)
        gone = {name: int(mask.size - mask.sum()) for name, mask in masks.items()}
        pruned, total = sum(gone.values()), results.summary["prunable"]
        counted = (row["pruned"], row["remaining"]) == (pruned, total - pruned)
        if not counted or not close(row["sparsity"], pruned / total):
            miscounted.append(step)
        shares = {name: gone[name] / mask.size if mask.size else 0.0 for name, mask in masks.items()}
        if not all(close(share, row["layers"][name]) for name, share in shares.items()):
            wrong_layers.append(step)
        before = masks
    every = steps([row["step"] for row in rows])
    yield _listed("masks are nested", revived, every, "weights come back")
    yield _listed("sparsities are those of the masks", miscounted, every, "others")
    yield _listed("layers' sparsities are those of the masks", wrong_layers, every, "others")
    for phase in ("pruned", "finetuned"):
        if results.summary[phase] is not None:
            yield _zero(phase, results.weights(phase), before)


def _zero(phase: str, weights: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray]) -> Claim:
    name = f"{phase} weights are zero where the masks prune"
    wrong = {n: int(np.count_nonzero(weights[n][~mask])) for n, mask in masks.items() if n in weights}
    wrong = {n: count for n, count in wrong.items() if count}
    if not wrong:
        return holds(name, f"{sum(int((~mask).sum()) for mask in masks.values())} weights")
    places = ", ".join(f"{count} of {n}" for n, count in wrong.items())
    return differs(name, f"not zero: {places}")


def of_attempts(results: Results) -> Iterator[Claim]:
    """The attempts that stayed are the steps."""
    attempts, rows = results.summary["attempts"], results.summary["steps"]
    if not attempts:
        return
    keys = ("step", "target_sparsity", "predicted_delta_loss", "delta_loss")
    stayed = [{key: attempt[key] for key in keys} for attempt in attempts if attempt["accepted"]]
    taken = [{key: row[key] for key in keys} for row in rows]
    name = "attempts that stayed are the steps"
    if stayed == taken:
        yield holds(name, f"{len(stayed)} of {len(attempts)}")
        return
    wrong = [row["step"] for row, attempt in zip(taken, stayed, strict=False) if row != attempt]
    yield differs(
        name, steps(wrong) if wrong else f"{len(stayed)} attempts stayed, and there are {len(taken)} steps"
    )


def of_budgets(results: Results) -> Iterator[Claim]:
    """Error budgets: what they measured is the step's change, and their parts sum to it."""
    for label in results.summary["probes"]:
        if results.probe_kind(label) == "error_budget" and "step" in results.moments(label):
            yield from _Budget(results, label).claims()


class _Budget:
    def __init__(self, results: Results, label: str) -> None:
        self._label, self._summary = label, results.summary
        self._shown = results.summary["probes"][label]["steps"]
        self._steps = [shown["step"] for shown in self._shown]
        found = results.probe(label, "step")
        self._numbers = {name: values.tolist() for name, values in found["budget"].items()}
        self._layers = found.get("layers", {})
        self._rounding = _ROUNDING.get(str(results.summary["spec"].get("dtype")), _COARSE)
        self._rows: Mapping[int, Row] = {row["step"]: row for row in results.summary["steps"]}

    def claims(self) -> Iterator[Claim]:
        """In the order in which they build on each other."""
        numbers = self._numbers
        changes = [self._rows[step]["delta_loss"] for step in self._steps]
        yield from self._compared(
            "measured is the step's delta_loss", lambda i: numbers["measured"][i] == changes[i]
        )
        yield from self._compared("parts sum to measured", self._sums)
        for part in ("linear", "diagonal", "off_diagonal"):
            if part in self._layers:
                yield from self._compared(
                    f"layers' {part} sums to the part",
                    partial(self._layers_sum, part),
                )
        yield from self._compared(
            "sampling and generalisation are the splits' changes",
            self._splits,
            "the table of steps does not have them for the whole splits",
        )
        yield from self._compared("what is shown is what was stored", self._is_shown)

    def _compared(
        self, name: str, agrees: Callable[[int], bool | None], why: str = "one of its numbers is missing"
    ) -> Iterator[Claim]:
        """A claim about all steps, and one about those where something is missing."""
        verdicts = {step: agrees(i) for i, step in enumerate(self._steps)}
        name = f"{self._label}: {name}"
        wrong = [step for step, verdict in verdicts.items() if verdict is False]
        known = [step for step, verdict in verdicts.items() if verdict is not None]
        lacking = [step for step, verdict in verdicts.items() if verdict is None]
        if wrong or known:
            yield differs(name, f"at {steps(wrong)}") if wrong else holds(name, steps(known))
        if lacking:
            yield unchecked(name, f"{steps(lacking)}: {why}")

    def _sums(self, i: int) -> bool | None:
        parts, measured = [self._numbers[part][i] for part in _PARTS], self._numbers["measured"][i]
        if not all(map(math.isfinite, (*parts, measured))):
            return None
        return close(math.fsum(parts), measured, parts)

    def _layers_sum(self, part: str, i: int) -> bool | None:
        terms, whole = self._layers[part][i].ravel().tolist(), self._numbers[part][i]
        if not all(map(math.isfinite, (*terms, whole))):
            return None
        scale = math.fsum(map(abs, (whole, *terms)))
        # Between layers it is found another way than for all of them together, in the run's type.
        allowed = self._rounding if part == "off_diagonal" else 2.0**-40
        return bool(abs(math.fsum(terms) - whole) <= allowed * scale)

    def _splits(self, i: int) -> bool | None:
        """Against the steps' table, where that is of the whole splits."""
        step, spec = self._steps[i], self._summary["spec"]
        if spec["prune"].get("recalibrate_batchnorm") is not None:
            return None
        here, before = self._rows[step], self._rows.get(step - 1, self._summary["dense"])
        change: dict[str, float] = {}
        scale = 1.0
        for split in ("train", "valid"):
            pair = here[f"{split}_loss"], before[f"{split}_loss"]
            if None not in pair:
                change[split] = pair[0] - pair[1]
                scale += abs(pair[0]) + abs(pair[1])
        measured = self._numbers["measured"][i]
        expected: dict[str, float] = {}
        if spec["evaluate"]["train_examples"] is None and "train" in change:
            expected["sampling"] = change["train"] - measured
            if "valid" in change:
                expected["generalisation"] = change["valid"] - change["train"]
        known = {name: value for name, value in expected.items() if math.isfinite(self._numbers[name][i])}
        if not known:
            return None
        allowed = self._rounding * scale
        return all(abs(self._numbers[name][i] - value) <= allowed for name, value in known.items())

    def _is_shown(self, i: int) -> bool | None:
        shown = self._shown[i]
        flat = {**shown.get("parts", {}), **shown}
        return all(
            flat.get(name) == (values[i] if math.isfinite(values[i]) else None)
            for name, values in self._numbers.items()
        )


def _listed(name: str, wrong: list[int], every: str, what: str) -> Claim:
    return differs(name, f"{what} at {steps(wrong)}") if wrong else holds(name, every)
