"""Pruning block by block."""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path

import pytest
import running
import torch
from torch import nn

import prunekit as pk
from prunekit.network.relay import Relay
from prunekit.network.shelf import Shelf
from prunekit.network.stages import Stages, blocks_of

D = 12


class Block(nn.Module):
    """Mixes positions and channels; takes a mask as its users give it, and answers with a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.q, self.k, self.v = (nn.Linear(D, D, bias=False) for _ in range(3))
        self.out = nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 2 * D), nn.Linear(2 * D, D)

    def forward(self, x, mask=None, positions=None):
        h = self.norm(x) + positions
        scores = self.q(h) @ self.k(h).mT / D**0.5
        if mask is not None:
            scores = scores + mask
        x = x + self.out(scores.softmax(-1) @ self.v(h))
        return x + self.down(torch.tanh(self.up(self.norm(x)))), None


class Network(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(17, D)
        self.layers = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(D, 17)

    def forward(self, ids):
        x = self.embed(ids)
        mask = torch.full((ids.shape[1],) * 2, -1e9, dtype=x.dtype).triu(1)
        positions = torch.linspace(-1, 1, D, dtype=x.dtype)[None, None]
        for layer in self.layers:
            x, _ = layer(x, mask=mask, positions=positions)
        return self.head(x)


@pytest.fixture
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network().double().eval()


def tokens(examples: int, length: int = 7) -> torch.Tensor:
    return torch.randint(17, (examples, length), generator=torch.Generator().manual_seed(examples))


BATCHES = [(ids, ids) for ids in (tokens(4), tokens(3), tokens(1))]
INSIDE = {"exclude": ["head.*"]}
LAYER_WISE = [
    {"name": "sparsegpt"},
    {"name": "sparsegpt", "refit": "cg"},
    {"name": "wanda"},
    {"name": "wanda", "swaps": 20},
    {"name": "wanda", "swaps": 20, "update": "cg"},
    {"name": "wanda", "swaps": 20, "n": 2, "m": 4},
    {"name": "obc"},
    {"name": "alps"},
]
RANKING = [
    {"name": "magnitude"},
    {"name": "magnitude", "update": "cg"},
    {"name": "wanda", "selection": "saliency"},
    {"name": "sparsegpt", "selection": "saliency"},
    {"name": "obc", "selection": "saliency", "lambda": 0.1},
]


def pruned(network, criterion, **options):
    model = copy.deepcopy(network)
    options = {"sparsity": 0.5, "steps": 1, "prunable": INSIDE, "loss": "token_cross_entropy", **options}
    return model, pk.prune(model, BATCHES, criterion, **options)


def name_of(value) -> str:
    return "-".join(map(str, value.values())) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize("offload", ["none", "cpu", "disk"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("criterion", [*LAYER_WISE, *RANKING], ids=name_of)
def test_with_dense_inputs_everything_is_as_without_blocks(network, criterion, steps, offload) -> None:
    expected, whole = pruned(network, criterion, steps=steps)
    found, parts = pruned(
        network, criterion, steps=steps, blocks={"blocks": "layers.*", "inputs": "dense", "offload": offload}
    )
    for name, mask in whole.masks.items():
        assert torch.equal(parts.masks[name], mask)
    for (name, p), q in zip(expected.named_parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-7, atol=1e-9, msg=name)
    assert [s.delta_loss for s in parts.steps] == pytest.approx([s.delta_loss for s in whole.steps], rel=1e-6)


OF_THE_LOSS = [
    {"name": "lm", "lambda": 0.1},
    {"name": "taylor_fo"},
    {"name": "qm", "curvature": "ggn_mc", "draws": 2},
    {"name": "obd", "curvature": "auto"},
    {"name": "empirical_fisher", "terms": "sequence"},
    {"name": "empirical_fisher"},
    {"name": "obs_kfac", "curvature": "ggn_mc", "scope": "layerwise"},
    {"name": "obs_kfac", "curvature": "ggn", "selection": "saliency", "gradient": True, "damping": 0.1},
    {"name": "obs_block", "curvature": "empirical_fisher", "selection": "saliency", "damping": 0.01},
    {"name": "obs_rows", "curvature": "ggn_mc", "scope": "layerwise"},
]


@pytest.mark.parametrize("memory", [None, 3 << 20], ids=["whole", "cut"])
@pytest.mark.parametrize("criterion", OF_THE_LOSS, ids=name_of)
def test_what_the_loss_sends_back_is_the_same_in_every_block(network, criterion, memory) -> None:
    """Also in pieces: draws, columns and gradients are those of the whole network."""
    expected, whole = pruned(network, criterion, steps=2)
    found, parts = pruned(
        network,
        criterion,
        steps=2,
        blocks={"blocks": "layers.*", "inputs": "dense", "offload": "disk"},
        memory=memory,
    )
    for name, mask in whole.masks.items():
        assert torch.equal(parts.masks[name], mask)
    for (name, p), q in zip(expected.named_parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-8, msg=name)
    for step, other in zip(parts.steps, whole.steps, strict=True):
        assert step.delta_loss == pytest.approx(other.delta_loss, rel=1e-6)
        assert step.predicted_delta_loss == pytest.approx(other.predicted_delta_loss, rel=1e-6)


@pytest.mark.parametrize("offload", ["none", "disk"])
@pytest.mark.parametrize("criterion", LAYER_WISE, ids=name_of)
def test_pruned_inputs_are_the_published_sequence(network, criterion, offload) -> None:
    """Written out: one block after another is pruned, in a network whose earlier blocks are pruned already."""
    expected = copy.deepcopy(network)
    for i in range(3):
        pk.prune(
            expected,
            BATCHES,
            criterion,
            sparsity=0.5,
            steps=1,
            prunable={"include": [f"layers.{i}.*.weight", f"layers.{i}.[qkv].weight"]},
            loss="token_cross_entropy",
        )
    found, _ = pruned(network, criterion, blocks={"blocks": "layers.*", "offload": offload})
    for (name, p), q in zip(expected.named_parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("criterion", ["sparsegpt", "wanda"])
def test_all_steps_of_a_block_come_before_the_next_block(network, criterion) -> None:
    expected = copy.deepcopy(network)
    for i in range(3):
        include = [f"layers.{i}.*.weight", f"layers.{i}.[qkv].weight"]
        pk.prune(
            expected,
            BATCHES,
            criterion,
            scheduler={"name": "explicit", "levels": [0.25, 0.5]},
            prunable={"include": include},
            loss="token_cross_entropy",
        )
    scheduler = {"name": "explicit", "levels": [0.25, 0.5]}
    found, pruning = pruned(
        network, criterion, sparsity=None, steps=None, scheduler=scheduler, blocks="layers.*"
    )
    assert len(pruning.steps) == 1
    for (name, p), q in zip(expected.named_parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize(
    ("selector", "sparsity"),
    [("layerwise", 0.6), ({"name": "nm", "n": 2, "m": 4}, 0.5)],
    ids=["layerwise", "nm"],
)
def test_selectors_that_know_what_each_layer_loses(network, selector, sparsity) -> None:
    model, pruning = pruned(network, "magnitude", sparsity=sparsity, selector=selector, blocks="layers.*")
    for name, mask in pruning.masks.items():
        assert int((~mask).sum()) == pytest.approx(sparsity * mask.numel(), abs=1), name
        assert not model.get_parameter(name)[~mask].any()


def test_a_step_that_fails_leaves_the_network_as_it_was(network, monkeypatch) -> None:
    from prunekit_plugins.criteria.sparsegpt import SparseGPT

    calls = []

    def fails(self, context):
        calls.append(1)
        if len(calls) == 3:
            raise pk.RunError("no more")
        return own(self, context)

    own = SparseGPT.propose
    monkeypatch.setattr(SparseGPT, "propose", fails)
    model = copy.deepcopy(network)
    with pytest.raises(pk.RunError, match="no more"):
        pk.prune(
            model,
            BATCHES,
            "sparsegpt",
            sparsity=0.5,
            steps=1,
            prunable=INSIDE,
            loss="token_cross_entropy",
            blocks="layers.*",
        )
    for p, q in zip(network.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert all("forward" not in vars(module) for module in model.modules())


DENSE = {"blocks": "layers.*", "inputs": "dense"}


class EveryOther(pk.Scheduler):
    """Adapts, in name at least."""

    name = "every_other"
    adapts = True

    def next(self, history):
        return None if history else pk.Target(0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": "nowhere.*"}, r"blocks: 'nowhere\.\*' matches no module"),
        ({"blocks": "layers.*", "prunable": {}}, r"head\.weight is prunable but in no block.*exclude"),
        ({"blocks": "layers.[01]"}, r"layers\.2\..*in no block"),
        (
            {"blocks": "layers.*", "criterion": "magnitude"},
            r"selector 'global' lets layers compete.*layerwise and nm",
        ),
        (
            {"blocks": "layers.*", "criterion": {"name": "obc", "scope": "global"}},
            r"criterion 'obc' lets layers compete.*scope: layerwise",
        ),
        ({"blocks": "layers.*", "criterion": "qm"}, r"criterion 'qm' needs .*gradient.*inputs: dense"),
        ({"blocks": DENSE, "criterion": "snip"}, r"criterion 'snip' weighs layers together"),
        ({"blocks": DENSE, "criterion": "oba"}, r"criterion 'oba' weighs layers together"),
        ({"blocks": DENSE, "criterion": "obs"}, r"criterion 'obs' weighs layers together"),
        (
            {"blocks": DENSE, "criterion": "combinatorial"},
            r"criterion 'combinatorial' weighs layers together",
        ),
        (
            {"blocks": DENSE, "criterion": "synflow"},
            r"criterion 'synflow' weighs layers together",
        ),
        ({"blocks": DENSE, "criterion": "random"}, r"criterion 'random' needs uniform"),
        ({"blocks": DENSE, "criterion": "grasp"}, r"second derivatives"),
        (
            {"blocks": DENSE, "criterion": {"name": "qm", "curvature": "hessian"}},
            r"hessian_diagonal needs second derivatives",
        ),
        ({"blocks": DENSE, "criterion": "obs_kfac"}, r"criterion 'obs_kfac' lets layers compete"),
        (
            {"blocks": "layers.*", "scheduler": EveryOther()},
            r"'every_other' decides after each step.*inputs: dense",
        ),
        ({"blocks": {"blocks": "layers.*", "inputs": "none"}}, r"blocks.*inputs"),
    ],
)
def test_what_cannot_go_block_by_block_is_refused_before_anything_changes(network, options, message) -> None:
    model = copy.deepcopy(network)
    given = {"criterion": "sparsegpt", "sparsity": 0.5, "steps": 1, "prunable": INSIDE, **options}
    if "scheduler" in options:
        given |= {"sparsity": None, "steps": None}
    with pytest.raises(pk.PrunekitError, match=message):
        pk.prune(model, BATCHES, loss="token_cross_entropy", **given)
    for p, q in zip(network.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)


class Skipping(nn.Module):
    """A block's answer bypasses the next block, and both stacks see what lies between."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(8, 4) for _ in range(2))

    def forward(self, x):
        kept = []
        for layer in self.down:
            x = layer(x).tanh()
            kept.append(x)
        for layer in self.up:
            kept.pop()
            x = layer(torch.cat([x, kept[-1]], -1)).tanh()
        return x


def test_answers_are_kept_as_long_as_a_later_block_needs_them() -> None:
    torch.manual_seed(0)
    network, x = Skipping().double().eval(), torch.randn(5, 4, dtype=torch.float64)
    stages = Stages(network, blocks_of(network, ["down.*", "up.*"]), x)
    assert stages.names == ["down.0", "down.1", "down.2", "up.0", "up.1"]
    assert stages.last_use == [4, 3, 3, 4, 5]
    expected = [x]
    kept = []
    for layer in network.down:
        expected.append(layer(expected[-1]).tanh())
        kept.append(expected[-1])
    expected[3] = torch.cat([kept[2], kept[1]], -1)
    expected.append(torch.cat([network.up[0](expected[3]).tanh(), kept[0]], -1))
    with Shelf("disk") as shelf:
        relay = Relay(stages, [x[:3], x[3:]], shelf)
        for index in range(5):
            parts = [arguments.filled(arguments.some())[0][0] for arguments in relay.arguments(index)]
            torch.testing.assert_close(torch.cat(parts), expected[index].detach())
            relay.run(index, 1 << 20)


def test_patterns_may_name_a_block_twice_and_only_the_outermost_counts(network) -> None:
    assert blocks_of(network, ["layers.*", "layers.1", "layers.2.q"]) == ["layers.0", "layers.1", "layers.2"]
    with pytest.raises(pk.SpecError, match=r"'layers\.9' matches no module"):
        blocks_of(network, ["layers.*", "layers.9"])


def test_what_goes_past_a_block_is_not_followed_backwards() -> None:
    torch.manual_seed(0)
    network, x = Skipping().double().eval(), torch.randn(5, 4, dtype=torch.float64)
    batches = [(x, torch.randn(5, 4, dtype=torch.float64))]
    before = copy.deepcopy(network)
    blocks = {"blocks": ["down.*", "up.*"], "inputs": "dense"}
    options = {"sparsity": 0.5, "steps": 1, "loss": "mse", "blocks": blocks}
    with pytest.raises(pk.UnsupportedError, match="bypasses the next block"):
        pk.prune(network, batches, "lm", **options)
    for p, q in zip(network.parameters(), before.parameters(), strict=True):
        assert torch.equal(p, q)
    whole = pk.prune(before, batches, "sparsegpt", sparsity=0.5, steps=1, loss="mse")
    parts = pk.prune(network, batches, "sparsegpt", **options)
    for name, mask in whole.masks.items():
        assert torch.equal(parts.masks[name], mask)


def test_blocks_that_run_twice_or_never_are_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.body(self.body(x))

    model, x = Twice(), torch.randn(2, 3)
    with pytest.raises(pk.UnsupportedError, match=r"body runs more than once"):
        Stages(model, ["body"], x)
    with pytest.raises(pk.UnsupportedError, match=r"idle does not run"):
        Stages(model, ["idle"], x)


@pytest.mark.parametrize("where", ["none", "cpu", "disk"])
def test_a_shelf_gives_back_what_it_was_given(where, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    things = (
        torch.randn(3, 2).bfloat16(),
        {"a": torch.zeros(0, 4), "b": None},
        torch.arange(4).view(2, 2).T,
        True,
    )
    with Shelf(where) as shelf:
        later = shelf.put(things)
        first = later()
        first[0].zero_()
        again = later()
        assert torch.equal(again[0], things[0])
        assert again[1]["a"].shape == (0, 4)
        assert again[1]["b"] is None
        assert torch.equal(again[2], things[2])
        assert again[3] is True
        assert len(list(Path(tmp_path).rglob("*"))) == (
            3 if where == "disk" else 0
        )  # a folder and two that hold values
        del later
    assert not os.listdir(tmp_path)


def test_layers_that_see_the_same_inputs_share_one_matrix(network) -> None:
    found = pk.statistics(network, BATCHES, "input_gram", loss="token_cross_entropy")["input_gram"]
    moments = {name: id(gram.moments) for name, gram in found.grams.items()}
    assert moments["layers.0.q.weight"] == moments["layers.0.k.weight"] == moments["layers.0.v.weight"]
    assert len(set(moments.values())) == 3 * 4 + 1


@pytest.mark.parametrize("sequences", [True, False])
def test_inputs_that_are_the_same_in_some_batches_only_have_matrices_of_their_own(sequences) -> None:
    class Parting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)

        def forward(self, x):
            return self.a(x) + self.b(x * 2 if len(x) > 2 else x)

    torch.manual_seed(0)
    model = Parting().double()
    xs = [torch.randn(n, 3, dtype=torch.float64) for n in ((2, 4, 2) if sequences else (2, 2))]
    batches = [(x, torch.zeros(len(x), 2, dtype=torch.float64)) for x in xs]
    grams = pk.statistics(model, batches, "input_gram", loss="mse")["input_gram"].grams
    n = 2 * sum(map(len, xs))
    for name, factor in (("a.weight", 1), ("b.weight", 2)):
        seen = torch.cat([x * factor if len(x) > 2 else x for x in xs])
        torch.testing.assert_close(grams[name].moments.matrix[0], seen.T @ seen / n)


SEQUENTIAL = {
    "model": {"name": "python", "factory": "running:stacked"},
    "prune": {
        "criterion": "sparsegpt",
        "scheduler": {"name": "one_shot", "sparsity": 0.5},
        "prunable": {"include": ["2.*.weight"]},
        "sequential": {"blocks": "2.*"},
    },
    "probes": None,
    "finetune": None,
}


@pytest.mark.parametrize(
    ("sequential", "scheduler", "criterion"),
    [
        ({"blocks": "2.*"}, {"name": "one_shot", "sparsity": 0.5}, "sparsegpt"),
        ({"blocks": "2.*"}, {"name": "linear", "sparsity": 0.6, "steps": 3}, "alps"),
        (
            {"blocks": "2.*", "inputs": "dense", "offload": "disk"},
            {"name": "linear", "sparsity": 0.6, "steps": 3},
            "wanda",
        ),
        ({"blocks": "2.*", "inputs": "dense"}, {"name": "linear", "sparsity": 0.6, "steps": 3}, "lm"),
    ],
)
@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_run_that_is_stopped_goes_on_with_the_next_block(
    sequential, scheduler, criterion, stop, tmp_path, monkeypatch
) -> None:
    from prunekit.plugins.host import default_manager

    prune = {**SEQUENTIAL["prune"], "sequential": sequential, "scheduler": scheduler, "criterion": criterion}
    if criterion == "lm":
        prune["selector"] = "layerwise"
    running.write_data(tmp_path / "data.npz")
    spec = running.mapping(tmp_path, **{**SEQUENTIAL, "prune": prune})
    cls = default_manager().get("criterion", criterion)
    own, calls = cls.propose, []

    def propose(self, context):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return own(self, context)

    with pk.run(spec, tmp_path / "whole.h5") as whole:
        assert whole.summary["status"] == "complete"
        assert len(whole.summary["steps"]) == (1 if sequential.get("inputs") != "dense" else 3)
    monkeypatch.setattr(cls, "propose", propose)
    whole_calls = 9 if scheduler["name"] == "linear" else 3
    each = 3 if sequential.get("inputs") != "dense" and whole_calls == 9 else 1  # proposals for a block
    if stop > whole_calls:
        return
    with pytest.raises(KeyboardInterrupt):
        pk.run(spec, tmp_path / "out.h5")
    left = tmp_path / "out.h5.state.blocks"
    assert left.is_dir() == ((stop - 1) % 3 // each > 0 or each == 3 < stop)
    pk.run(spec, tmp_path / "out.h5", resume=True).close()
    assert running.contents(tmp_path / "out.h5") == running.contents(tmp_path / "whole.h5")
    monkeypatch.undo()
    assert len(calls) == whole_calls + 1 + (stop - 1) % each
    assert not left.exists()


def test_what_is_left_of_a_block_is_computed_again_where_it_is_damaged(tmp_path) -> None:
    from prunekit.pruning.blocks import Done
    from prunekit.runs.finished import FinishedBlocks, forget

    kept = FinishedBlocks(tmp_path / "blocks", 3)
    done = Done({"a": torch.tensor([True, False])}, {"a": torch.tensor([1.5, 0.0]).bfloat16()}, -0.25)
    kept.put("layers.0", done)
    found = kept.get("layers.0")
    assert torch.equal(found.masks["a"], done.masks["a"])
    assert torch.equal(found.values["a"], done.values["a"])
    assert found.predicted == -0.25
    assert kept.get("layers.1") is None
    assert FinishedBlocks(tmp_path / "blocks", 2).get("layers.0") is None
    (file,) = (tmp_path / "blocks").iterdir()
    content = bytearray(file.read_bytes())
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 4
        file.write_bytes(damaged)
        again = kept.get("layers.0")
        assert again is None or torch.equal(again.values["a"], done.values["a"])
    (tmp_path / "blocks" / "mine.txt").write_text("x")
    forget(tmp_path / "blocks")
    assert [p.name for p in (tmp_path / "blocks").iterdir()] == ["mine.txt"]
