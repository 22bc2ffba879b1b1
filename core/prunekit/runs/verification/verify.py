"""Hold a results file against what it was computed from, claim by claim."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prunekit.plugins.host import PluginManager
from prunekit.records import Row
from prunekit.results import Results
from prunekit.runs.verification import certificates, inside, numbers, origin
from prunekit.runs.verification.claims import Claim, Verification, holds
from prunekit.runs.verification.evidence import Evidence


def verify(
    results: Results,
    manager: PluginManager,
    overrides: Row | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[str], None] = lambda text: None,
) -> Verification:
    """Recompute what a file claims from the weights in it and the data that its spec names.

    Args:
        results: The file, which may be that of an unfinished run.
        manager: Plugins: without code, a file that names Python to run is not followed there.
        overrides: Of its spec, such as where data lie now.
        device: Where it is computed.
        say: Told, before it happens, of Python that will run.
        progress: Told of what is being looked at.

    Raises:
        ResultsError: If the file is damaged.
    """
    whole = results.whole(weights=False)  # which is a claim of its own
    how = "all with checksums" if whole.checksums else "no checksums, as format 1 has none"
    claims = [holds("the file is whole", f"{whole.arrays} arrays, {how}")]
    evidence = Evidence(results, manager, overrides or {}, device, say)
    for part in _parts(evidence, progress):
        claims.extend(part)
    return Verification(tuple(claims))


def _parts(evidence: Evidence, progress: Callable[[str], None]) -> Iterator[Iterator[Claim]]:
    """Where the data come from first: what does not fit them is not held against the numbers."""
    results = evidence.results
    yield origin.of_spec(evidence)
    yield origin.of_inputs(evidence)
    yield inside.of_masks(results)
    yield inside.of_attempts(results)
    yield inside.of_budgets(results)
    yield numbers.of_phases(evidence)
    yield certificates.of_certificates(evidence, progress)
    yield numbers.of_steps(evidence, progress)
