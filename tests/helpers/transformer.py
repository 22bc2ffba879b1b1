"""Small networks of transformers, of random weights, with inputs that they take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Made = tuple[nn.Module, dict[str, Tensor]]

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 64,
}
KEYS = {"num_key_value_heads": 2}


def tokens(examples: int = 6, length: int = 8) -> Tensor:
    return torch.randint(3, 64, (examples, length), generator=torch.Generator().manual_seed(1))


def _text(name: str, config: Any) -> Made:
    import transformers

    return getattr(transformers, name)(config), {"input_ids": tokens()}


def llama() -> Made:
    import transformers as t

    return _text("LlamaForCausalLM", t.LlamaConfig(**SIZES, **KEYS))


def gpt2() -> Made:
    import transformers as t

    ends = {"bos_token_id": 1, "eos_token_id": 2}
    return _text(
        "GPT2LMHeadModel", t.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=64, n_positions=16, **ends)
    )


def bert() -> Made:
    import transformers as t

    return _text("BertForSequenceClassification", t.BertConfig(**SIZES, num_labels=3))


def t5() -> Made:
    import transformers as t

    config = t.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=64)
    network, inputs = _text("T5ForConditionalGeneration", config)
    return network, {**inputs, "decoder_input_ids": tokens()}


def mixtral() -> Made:
    import transformers as t

    return _text(
        "MixtralForCausalLM", t.MixtralConfig(**SIZES, **KEYS, num_local_experts=4, num_experts_per_tok=2)
    )


def qwen_moe() -> Made:
    import transformers as t

    own = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = t.Qwen2MoeConfig(**SIZES, **KEYS, **own, shared_expert_intermediate_size=16)
    return _text("Qwen2MoeForCausalLM", config)


def mamba() -> Made:
    import transformers as t

    return _text(
        "MambaForCausalLM", t.MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=64, state_size=4)
    )


def _picture(name: str, config: Any) -> Made:
    import transformers

    pixels = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return getattr(transformers, name)(config), {"pixel_values": pixels}


def vit() -> Made:
    import transformers as t

    sizes = {key: value for key, value in SIZES.items() if key != "vocab_size"}
    return _picture(
        "ViTForImageClassification", t.ViTConfig(**sizes, image_size=16, patch_size=4, num_labels=3)
    )


def swin() -> Made:
    import transformers as t

    config = t.SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2, num_labels=3
    )
    return _picture("SwinForImageClassification", config)


def whisper() -> Made:
    import transformers as t

    sizes = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
    sides = {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in sizes.items()}
    config = t.WhisperConfig(
        **sides, vocab_size=64, d_model=16, num_mel_bins=8, max_source_positions=10, max_target_positions=12,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    network = t.WhisperForConditionalGeneration(config)
    features = torch.randn(6, 8, 20, generator=torch.Generator().manual_seed(1))
    return network, {"input_features": features, "decoder_input_ids": tokens()}


NETWORKS: dict[str, Callable[[], Made]] = {
    f.__name__: f for f in (llama, gpt2, bert, t5, mixtral, qwen_moe, mamba, vit, swin, whisper)
}


def made(name: str) -> Made:
    """The same weights at every call, in evaluation mode."""
    torch.manual_seed(0)
    network, inputs = NETWORKS[name]()
    return network.eval(), inputs


def batch(
    network: nn.Module, inputs: dict[str, Tensor]
) -> tuple[list[tuple[dict[str, Tensor], Tensor]], str]:
    """Batches of unequal sizes with random labels, and their loss."""
    with torch.no_grad():
        shape = network(**inputs).logits.shape
    labels = torch.randint(0, shape[-1], shape[:-1], generator=torch.Generator().manual_seed(2))
    parts = [
        ({k: v[rows] for k, v in inputs.items()}, labels[rows]) for rows in (slice(0, 4), slice(4, None))
    ]
    return parts, "cross_entropy" if labels.ndim == 1 else "token_cross_entropy"


def folder(name: str, path: Path) -> Path:
    """A folder with one of them."""
    network: Any = made(name)[0]
    network.save_pretrained(path)
    return path
