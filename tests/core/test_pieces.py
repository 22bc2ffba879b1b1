"""A run that is stopped in the middle of a probe goes on there, and ends as one that nobody has stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import running
import torch

import prunekit as pk
from prunekit.observing import journal as journals
from prunekit.observing.journal import Journal, Note
from prunekit.observing.listener import Listener
from prunekit.runs import pieces

PROBES: dict[str, dict[str, Any]] = {
    "line": {"points": 7},
    "plane": {"points": 4},
    "path": {"name": "plane", "label": "path", "points": 3, "directions": "path"},
    "eigenvectors": {"name": "plane", "label": "eigenvectors", "points": 3, "directions": "eigenvectors"},
    "spectrum": {"iterations": 8, "density": {"iterations": 6, "vectors": 5, "tolerance": 0.0}},
    "layers_of_it": {"name": "spectrum", "label": "layers_of_it", "iterations": 5, "per_layer": True},
    "oracle": {"resamples": 10, "moments": ["dense", "pruned"]},
    "stability": {"examples": [5, 10, 20], "repeats": 4, "moments": ["pruned"]},
}


class Stopping(Listener):
    """Interrupts after so many pieces of a probe."""

    def __init__(self, after: int) -> None:
        self.after, self.seen = after, 0
        self.heard: list[tuple[str, int, int | None]] = []

    def piece(self, name: str, done: int, total: int | None) -> None:
        self.heard.append((name, done, total))
        self.seen += 1
        if self.seen == self.after:
            raise KeyboardInterrupt


def spec(folder: Path, probe: str) -> dict[str, Any]:
    running.write_data(folder / "data.npz")
    return running.mapping(folder, probes=[{"name": probe, **PROBES[probe]}])


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_that_is_stopped_in_its_middle_goes_on_there(
    probe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = spec(tmp_path, probe)
    whole = Stopping(-1)
    pk.run(made, tmp_path / "whole.h5", listener=whole).close()
    count = len(whole.heard)
    assert count >= 1
    measured: list[int] = []
    piece = Journal.piece

    def counted(self: Journal, compute: Any, generator: Any = None) -> Any:
        def really() -> Any:
            measured.append(1)
            return compute()

        return piece(self, really, generator)

    monkeypatch.setattr(Journal, "piece", counted)
    for after in sorted({1, count // 2, count - 1} - {0}):
        out = tmp_path / f"{after}.h5"
        measured.clear()
        with pytest.raises(KeyboardInterrupt):
            pk.run(made, out, listener=Stopping(after))
        assert len(measured) == after
        pk.run(made, out, resume=True).close()
        assert len(measured) == count  # none of them twice
        assert running.contents(out) == running.contents(tmp_path / "whole.h5")


@pytest.mark.parametrize("probe", ["plane", "stability"])
def test_a_process_that_is_killed_loses_what_came_after_the_state_was_written(
    probe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the chance to write anything at the end."""
    monkeypatch.setattr(pieces, "_PERIOD", 0.0)
    made = spec(tmp_path, probe)
    pk.run(made, tmp_path / "whole.h5").close()

    class Killing(Stopping):
        def piece(self, name: str, done: int, total: int | None) -> None:
            self.seen += 1
            if self.seen == self.after:
                (tmp_path / "out.h5.state").rename(tmp_path / "kept.state")
                (tmp_path / "kept.h5").write_bytes((tmp_path / "out.h5").read_bytes())
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pk.run(made, tmp_path / "out.h5", listener=Killing(5))
    (tmp_path / "kept.state").replace(tmp_path / "out.h5.state")
    (tmp_path / "kept.h5").replace(tmp_path / "out.h5")
    pk.run(made, tmp_path / "out.h5", resume=True).close()
    assert running.contents(tmp_path / "out.h5") == running.contents(tmp_path / "whole.h5")


def test_probes_say_how_many_pieces_they_have(tmp_path: Path) -> None:
    for probe in ("line", "plane"):
        heard = Stopping(-1)
        pk.run(spec(tmp_path, probe), tmp_path / f"{probe}.h5", listener=heard).close()
        assert heard.heard[-1] == (probe, len(heard.heard), len(heard.heard))
        assert [done for _, done, _ in heard.heard] == list(range(1, len(heard.heard) + 1))


def test_progress_is_shown_and_not_too_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit_cli.progress import PlainProgress

    monkeypatch.setattr(PlainProgress, "__init__", _every(PlainProgress.__init__, 0.0))
    running.write_data(tmp_path / "data.npz")
    path = running.write_spec(tmp_path)
    _, _, err = running.cli("run", path, "--out", tmp_path / "out.h5")
    assert "  line 3/14  " in err
    assert "  line 14/14  0 s left" in err


def _every(init: Any, seconds: float) -> Any:
    return lambda self, screen: init(self, screen, seconds)


def test_a_piece_is_answered_with_what_it_was_and_leaves_the_generator_where_it_did() -> None:
    notes: list[Note] = []
    first, second = Journal(notes), torch.Generator().manual_seed(1)

    def piece() -> tuple[list[torch.Tensor], dict[str, Any]]:
        return [torch.rand(3, generator=second)], {"a": 1, "b": (2.5, "c", None, True)}

    one = first.piece(piece, second)
    after = torch.rand(2, generator=second)
    one[0][0].zero_()  # what was handed out is the probe's own
    second.manual_seed(99)
    again = Journal(notes).piece(lambda: pytest.fail("computed again"), second)
    assert again[0][0].ne(0).all()
    assert again[1] == {"a": 1, "b": (2.5, "c", None, True)}
    assert torch.equal(torch.rand(2, generator=second), after)
    with pytest.raises(TypeError, match="numbers, texts and tensors, in lists and mappings; found set"):
        Journal([]).piece(lambda: {1})


def test_a_large_piece_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "LARGE", 8)
    notes: list[Note] = []
    Journal(notes).piece(lambda: torch.ones(5))
    assert notes[0].again
    assert notes[0].value is None
    assert torch.equal(Journal(notes).piece(lambda: torch.full((5,), 2.0)), torch.full((5,), 2.0))


def test_a_state_with_damaged_notes_is_refused(tmp_path: Path) -> None:
    made = spec(tmp_path, "plane")
    with pytest.raises(KeyboardInterrupt):
        pk.run(made, tmp_path / "out.h5", listener=Stopping(3))
    state = torch.load(tmp_path / "out.h5.state", weights_only=True)
    state["journal"]["notes"][0].pop("again")
    torch.save(state, tmp_path / "out.h5.state")
    with pytest.raises(pk.ResultsError, match="journal"):
        pk.run(made, tmp_path / "out.h5", resume=True)


def test_outside_a_run_nothing_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = torch.nn.Linear(3, 1), torch.randn(8, 3)
    monkeypatch.setattr(journals, "_note", lambda *_: pytest.fail("noted"))
    found = pk.probe(model, [(x, torch.zeros(8, 1))], {"name": "plane", "points": 3}, loss="mse")
    assert found["plane/train_loss"].shape == (3, 3)
