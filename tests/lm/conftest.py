"""Tokenizers and tiny models of several families; all random, nothing downloaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
)

VOCAB = 40
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**_SIZES),
    "qwen2": lambda: Qwen2Config(**_SIZES),
    "gemma2": lambda: Gemma2Config(**_SIZES, head_dim=8),
    "gemma2, window of 4": lambda: Gemma2Config(**_SIZES, head_dim=8, sliding_window=4),
    "gemma3": lambda: Gemma3TextConfig(**_SIZES, head_dim=8),
    "gemma3, window of 4": lambda: Gemma3TextConfig(
        **_SIZES, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "mistral, window of 4": lambda: MistralConfig(**_SIZES, sliding_window=4),
    "mixtral": lambda: MixtralConfig(**_SIZES, num_local_experts=4),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=128, pad_token_id=0, **_NO_DROPOUT
    ),
}


def tiny(family: str, attention: str | None = None, seed: int = 0) -> Any:
    """A random model of a family, with weights large enough that its attention is far from uniform."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](), attn_implementation=attention)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:  # 3: experts
                weight.normal_(0, 0.3)
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    """Bytes, with a ChatML template."""
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def plain_tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    """Bytes, no chat template."""
    found = AutoTokenizer.from_pretrained(tiny_model)
    found.chat_template = None
    return found
