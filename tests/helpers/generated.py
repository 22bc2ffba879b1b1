"""Networks drawn at random, as programs that can be pasted: `python -c "import generated; print(generated.program(7))"`."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

CLASSES = 3


@dataclass
class Drawing:
    """A network that grows line by line.

    Attributes:
        draw: What decides.
        shape: Of one example as it now is: ``(features,)``, ``(channels, height, width)``, or ``(time, features)``.
        kind: ``vector``, ``image`` or ``sequence``.
        made: Lines of the constructor.
        run: Lines of the forward pass.
    """

    draw: random.Random
    shape: tuple[int, ...]
    kind: str
    made: list[str] = field(default_factory=list)
    run: list[str] = field(default_factory=list)

    def module(self, text: str) -> str:
        """Add a module; returns its name."""
        self.made.append(f"self.m{len(self.made)} = {text}")
        return f"self.m{len(self.made) - 1}"

    def then(self, text: str) -> None:
        """Add a line to the forward pass."""
        self.run.append(f"x = {text}")


def linear(d: Drawing) -> None:
    out = d.draw.randint(2, 5)
    d.then(f"{d.module(f'nn.Linear({d.shape[-1]}, {out}, bias={d.draw.random() < 0.7})')}(x)")
    d.shape = (*d.shape[:-1], out)


def twice(d: Drawing) -> None:
    name = d.module(f"nn.Linear({d.shape[-1]}, {d.shape[-1]})")
    d.then(f"{name}(torch.tanh({name}(x)))")


def tied(d: Drawing) -> None:
    first = d.module(f"nn.Linear({d.shape[-1]}, {d.shape[-1]})")
    second = d.module(f"nn.Linear({d.shape[-1]}, {d.shape[-1]}, bias=False)")
    d.made[-1] += f"; {second}.weight = {first}.weight"
    d.then(f"{second}(torch.tanh({first}(x)))")


def residual(d: Drawing) -> None:
    d.then(f"x + torch.tanh({d.module(f'nn.Linear({d.shape[-1]}, {d.shape[-1]})')}(x))")


def branches(d: Drawing) -> None:
    one, two = (d.module(f"nn.Linear({d.shape[-1]}, 2)") for _ in range(2))
    d.then(f"torch.cat([{one}(x), {two}(x).sigmoid()], -1)")
    d.shape = (*d.shape[:-1], 4)


def functional(d: Drawing) -> None:
    name = d.module(f"nn.Parameter(torch.randn({d.shape[-1]}, 3) / 2)")
    d.then(f"x @ {name}")
    d.shape = (*d.shape[:-1], 3)


def layer_norm(d: Drawing) -> None:
    d.then(f"{d.module(f'nn.LayerNorm({d.shape[-1]})')}(x)")


def activation(d: Drawing) -> None:
    d.then(
        d.draw.choice(
            ["torch.tanh(x)", "F.softplus(x)", "F.gelu(x)", "torch.sigmoid(x)", "F.elu(x)", "torch.sin(x)"]
        )
    )


def attention(d: Drawing) -> None:
    name = d.module(f"nn.MultiheadAttention({d.shape[-1]}, 1, batch_first=True)")
    d.then(f"{name}(x, x, x, need_weights=False)[0]")


def recurrent(d: Drawing) -> None:
    d.then(f"{d.module(f'nn.GRU({d.shape[-1]}, 3, batch_first=True)')}(x)[0]")
    d.shape = (d.shape[0], 3)


def fold(d: Drawing) -> None:
    name = d.module(f"nn.Linear({d.shape[-1]}, {d.shape[-1]})")
    d.then(f"{name}(x.flatten(0, 1)).view(x.shape)")


def pooled_sequence(d: Drawing) -> None:
    d.then(d.draw.choice(["x.mean(1)", "x[:, -1]", "x.amax(1)"]))
    d.kind, d.shape = "vector", (d.shape[1],)


def convolution(d: Drawing) -> None:
    channels, height, width = d.shape
    groups = d.draw.choice([g for g in (1, 2) if channels % g == 0])
    kernel = d.draw.randint(1, min(3, height, width))
    padding, stride = d.draw.randint(0, 1), d.draw.randint(1, 2)
    out = groups * d.draw.randint(1, 2)
    d.then(f"{d.module(f'nn.Conv2d({channels}, {out}, {kernel}, {stride}, {padding}, groups={groups})')}(x)")
    d.shape = (out, *((side + 2 * padding - kernel) // stride + 1 for side in (height, width)))


def transposed(d: Drawing) -> None:
    channels, height, width = d.shape
    d.then(f"{d.module(f'nn.ConvTranspose2d({channels}, 2, 2, stride=2)')}(x)")
    d.shape = (2, 2 * height, 2 * width)


def batch_norm(d: Drawing) -> None:
    name = d.module(f"nn.BatchNorm2d({d.shape[0]})")
    d.made[-1] += f"; nn.init.uniform_({name}.running_mean); nn.init.uniform_({name}.weight)"
    d.then(f"{name}(x)")


def group_norm(d: Drawing) -> None:
    if d.shape[1] * d.shape[2] > 1:  # else torch refuses a batch of one example
        d.then(f"{d.module(f'nn.GroupNorm(1, {d.shape[0]})')}(x)")


def pooled_image(d: Drawing) -> None:
    if min(d.shape[1:]) >= 2:
        d.then(d.draw.choice(["F.avg_pool2d(x, 2)", "F.max_pool2d(x, 2)"]))
        d.shape = (d.shape[0], d.shape[1] // 2, d.shape[2] // 2)


def flattened(d: Drawing) -> None:
    size = 1
    for side in d.shape:
        size *= side
    d.then("x.flatten(1)")
    d.kind, d.shape = "vector", (size,)


Step = Callable[[Drawing], None]
ANY: list[Step] = [linear, twice, tied, residual, branches, functional, layer_norm, activation, activation]
STEPS: dict[str, list[Step]] = {
    "vector": ANY,
    "sequence": [*ANY, attention, recurrent, fold, pooled_sequence],
    "image": [
        convolution,
        convolution,
        transposed,
        batch_norm,
        group_norm,
        pooled_image,
        activation,
        flattened,
    ],
}
STARTS: list[tuple[str, tuple[int, ...]]] = [("vector", (4,)), ("sequence", (3, 4)), ("image", (2, 4, 5))]


def program(seed: int) -> str:
    """The program of one network with data; it leaves ``model``, ``batches``, ``loss`` and ``memory``."""
    draw = random.Random(seed)
    kind, start = draw.choice(STARTS)
    drawing = Drawing(draw, start, kind)
    for _ in range(draw.randint(2, 5)):
        draw.choice(STEPS[drawing.kind])(drawing)
        if drawing.kind == "image" and drawing.shape[0] * drawing.shape[1] * drawing.shape[2] > 120:
            pooled_image(drawing)
    if drawing.kind != "vector":
        flattened(drawing)
    loss = draw.choice(["cross_entropy", "mse", "bce_with_logits"])
    drawing.then(f"{drawing.module(f'nn.Linear({drawing.shape[-1]}, {CLASSES})')}(x)")
    examples = draw.randint(4, 9)
    targets = {
        "cross_entropy": f"torch.randint({CLASSES}, ({examples},))",
        "mse": f"torch.randn({examples}, {CLASSES}, dtype=torch.float64)",
        "bce_with_logits": f"torch.rand({examples}, {CLASSES}, dtype=torch.float64)",
    }
    cut = draw.randint(1, examples - 1)
    lines = [
        "import torch",
        "import torch.nn.functional as F",
        "from torch import nn",
        "",
        f"torch.manual_seed({seed})",
        "",
        "class Network(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        *(f"        {line}" for line in drawing.made),
        "",
        "    def forward(self, x):",
        *(f"        {line}" for line in drawing.run),
        "        return x",
        "",
        "model = Network().double().eval()",
        f"x = torch.randn({examples}, {', '.join(map(str, start))}, dtype=torch.float64)",
        f"y = {targets[loss]}",
        f"batches = [(x[:{cut}], y[:{cut}]), (x[{cut}:], y[{cut}:])]",
        f"loss = {loss!r}",
        f"memory = {draw.choice([None, None, 20_000, 200_000])}",
    ]
    return "\n".join(lines) + "\n"
