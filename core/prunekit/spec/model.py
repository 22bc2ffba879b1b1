"""The shape of a spec: pydantic models for what the engine owns, a slot for each plugin."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from prunekit.component import Component, Options, summary
from prunekit.masks.settings import Prunable
from prunekit.plugins.host import PluginManager, default_manager
from prunekit.plugins.kinds import KINDS
from prunekit.pruning.sequential import Sequential
from prunekit.records import Plain
from prunekit.training.settings import Train, named
from prunekit.units import bytes_of


class Choice(BaseModel):
    """A plugin's name. Its options are checked by its own ``Options`` model and kept beside it."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    name: str


_KIND = "x-prunekit-kind"
_KEPT = ("default", "description")
_NAMED = BeforeValidator(named)


def _of(kind: str) -> Plain:
    """Marks in the schema where the options of every plugin of a kind are to be filled in."""
    return Field(json_schema_extra={_KIND: kind})


ModelChoice = Annotated[Choice, _NAMED, _of("model")]
DatasetChoice = Annotated[Choice, _NAMED, _of("dataset")]
LossChoice = Annotated[Choice, _NAMED, _of("loss")]
CriterionChoice = Annotated[Choice, _NAMED, _of("criterion")]
SchedulerChoice = Annotated[Choice, _NAMED, _of("scheduler")]
SelectorChoice = Annotated[Choice, _NAMED, _of("selector")]
ProbeChoice = Annotated[Choice, _NAMED, _of("probe")]
MetricChoice = Annotated[Choice, _NAMED, _of("metric")]
RecorderChoice = Annotated[Choice, _NAMED, _of("recorder")]


class Prune(Options):
    """What the pruning steps do.

    Attributes:
        criterion: How much the loss is expected to rise without each weight.
        scheduler: The sparsity after each step.
        selector: Which weights go, given the saliencies and a budget.
        prunable: Which parameters may be pruned.
        zeros: Whether weights that are exactly zero when pruning starts count as pruned (``pruned``) or as weights
            like any other (``free``).
        examples: Training examples that each step's statistics are estimated on; null = all.
        sample: ``fresh``: each step draws its own examples; ``fixed``: all steps use those of the first.
        recalibrate_batchnorm: After each step's measurement, recompute BatchNorm's running statistics on this many
            training examples; null = leave them as they are.
        sequential: Prune block by block, holding the statistics and activations of one block at a time; null = all
            blocks together.
    """

    criterion: CriterionChoice
    scheduler: SchedulerChoice
    selector: SelectorChoice = Choice(name="global")
    prunable: Prunable = Prunable()
    zeros: Literal["pruned", "free"] = "pruned"
    examples: int | None = Field(default=1000, ge=1)
    sample: Literal["fresh", "fixed"] = "fresh"
    recalibrate_batchnorm: int | None = Field(default=None, ge=1)
    sequential: Sequential | None = None


class Seeds(Options):
    """One seed for each kind of randomness, to tell them apart; ``seed`` stands in for those left out.

    Attributes:
        init: The network's initial weights.
        order: Order, augmentation and dropout of the dense network's training.
        sample: Examples of the steps, the draws of their statistics, and probes.
        finetune: Order, augmentation and dropout of fine-tuning.
    """

    init: int | None = Field(default=None, ge=0, lt=2**63)
    order: int | None = Field(default=None, ge=0, lt=2**63)
    sample: int | None = Field(default=None, ge=0, lt=2**63)
    finetune: int | None = Field(default=None, ge=0, lt=2**63)


class Evaluate(Options):
    """What the reported metrics are measured on.

    Attributes:
        train_examples: Number of training examples, from the first; null = all.
        every: Measure after every so many pruning steps and after the last; metrics of the steps in between are NaN.
        metrics: Metrics besides loss and error, on every split.
    """

    train_examples: int | None = Field(default=None, ge=1)
    every: int = Field(default=1, ge=1)
    metrics: tuple[MetricChoice, ...] = ()


def _bytes(value: Plain) -> Plain:
    return bytes_of(value) if isinstance(value, str) else value


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:(0|[1-9][0-9]?))?", value):
        raise ValueError("must be auto, cpu, cuda or cuda:N")
    return value


def _whole(value: Plain) -> Plain:
    if isinstance(value, bool):  # which to Python is the number 1
        raise ValueError("must be 1")
    return value


class Settings(Options):
    """A whole spec as the engine reads it; of a plugin, the name.

    Attributes:
        version: Version of the spec format; 1.
        name: Names the default output file; default: the spec file's own name.
        folder: Where relative paths start, relative to the spec file's folder; null = that folder itself.
        seed: Seeds all randomness for which ``seeds`` gives no seed of its own.
        seeds: A seed for each kind of randomness.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: a GPU where there is one, else the CPU.
        dtype: Type of the parameters.
        model: The network.
        dataset: Training, validation and test examples.
        loss: Null = chosen by the targets: ``cross_entropy``, ``mse``, ``bce_with_logits`` or ``causal_lm``.
        train: How the dense network is trained; null = not at all, as when the model has a ``checkpoint``.
        prune: The pruning steps; null = none.
        finetune: How the pruned network is trained further; null = not at all. Missing keys come from ``train``.
        evaluate: When and on how many examples metrics are measured.
        memory: Bytes, or text such as ``512MiB``, that activations, products and large statistics may take; null = 512 MiB.
        probes: Measurements of the loss landscape at moments of the run.
        recorders: What records the run as it goes.
    """

    version: Annotated[Literal[1], BeforeValidator(_whole)]
    name: str = Field(default="run", min_length=1, pattern=r"^[^/\\\x00-\x1f]+$")
    folder: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    seeds: Seeds = Seeds()
    device: Annotated[str, AfterValidator(_device)] = "auto"
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    model: ModelChoice
    dataset: DatasetChoice
    loss: LossChoice | None = None
    train: Train | None = None
    prune: Prune | None = None
    finetune: Train | None = None
    evaluate: Evaluate = Evaluate()
    memory: Annotated[int | None, BeforeValidator(_bytes), PlainSerializer(lambda v: v)] = Field(
        default=None, ge=1 << 20
    )
    probes: tuple[ProbeChoice, ...] = ()
    recorders: tuple[RecorderChoice, ...] = (Choice(name="hdf5"),)


def json_schema(manager: PluginManager | None = None) -> dict[str, Plain]:
    """JSON Schema of a spec, with every installed plugin's options, for editors and validators."""
    manager = manager or default_manager()
    schema = Settings.model_json_schema(mode="validation")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "prunekit run spec"
    definitions = schema.pop("$defs", {})
    filled: dict[str, Plain] = _fill(schema, manager, definitions)
    for key, definition in list(definitions.items()):  # filling adds the plugins' own
        definitions[key] = _fill(definition, manager, definitions)
    filled["$defs"] = definitions
    train = definitions["Train"]
    # A fine-tuning phase takes what it lacks from `train`, so nothing is required of it.
    definitions["Finetune"] = {k: v for k, v in train.items() if k != "required"} | {"title": "Finetune"}
    filled["properties"]["finetune"] |= {"anyOf": [{"$ref": "#/$defs/Finetune"}, {"type": "null"}]}
    for key in ("optimizer", "lr_scheduler"):
        for owner in ("Train", "Finetune"):
            field = dict(definitions[owner]["properties"][key])
            names = list(field.pop("discriminator", {}).get("mapping", {}))
            kept = {k: field.pop(k) for k in _KEPT if k in field}
            definitions[owner]["properties"][key] = {
                "anyOf": [{"type": "string", "enum": names}, field],
                **kept,
            }
    filled["properties"]["memory"]["anyOf"].append({"type": "string"})
    definitions.pop("Choice", None)
    return filled


def _fill(node: Plain, manager: PluginManager, definitions: dict[str, Plain]) -> Plain:
    if isinstance(node, list):
        return [_fill(item, manager, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    kind = node.get(_KIND)
    if kind is None:
        return {k: _fill(v, manager, definitions) for k, v in node.items()}
    kept = {k: node[k] for k in _KEPT if k in node}
    names = manager.names(kind)
    entries = []
    for name in names:
        providers = manager.providers(kind, name)
        if len(providers) == 1:
            key = f"{kind}.{name}"
            definitions.setdefault(key, _component_schema(kind, name, providers[0][1], definitions))
            entries.append({"$ref": f"#/$defs/{key}"})
    return {"anyOf": [{"type": "string", "enum": names}, *entries], **kept}


def _component_schema(
    kind: str, name: str, component: type[Component], definitions: dict[str, Plain]
) -> dict[str, Plain]:
    schema = component.Options.model_json_schema(mode="validation")
    for key, value in schema.pop("$defs", {}).items():
        definitions.setdefault(key, value)
    schema["title"] = f"{kind} {name}"
    schema["description"] = summary(component)
    schema["properties"] = {
        "name": {"const": name},
        **KINDS[kind].keys,
        **schema.get("properties", {}),
    }
    schema["required"] = ["name", *schema.get("required", [])]
    return schema
