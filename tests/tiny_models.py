"""Tiny random models of every supported architecture, built by transformers from a config."""

from copy import deepcopy
from functools import cache
from pathlib import Path

import torch
from tokenizers import processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
)

from sphere_bench.models.loading import LoadedModel, wrap_model

TOKENIZER = Path(__file__).parent / "golden" / "tiny-llama"
VOCABULARY = 1000
LAYERS = 4
# Prefixes of 7, 1, 0, 0 and 9 tokens, so that some rows of padded prefixes see nothing; suffixes of
# 2, 2, 4, 1 and 3.
ROWS = [
    [5, 6, 7, 8, 9, 10, 11, 12, 13],
    [20, 21, 22],
    [30, 31, 32, 33],
    [44],
    [5, 6, 7, *range(50, 59)],
]
STARTS = [7, 1, 0, 0, 9]

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GATED = {**_COMMON, "num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8}
_GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 64}

CONFIGS: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(**_GPT),
    "gptj": GPTJConfig(**_GPT, rotary_dim=4),
    "llama": LlamaConfig(**_GATED),
    "mistral": MistralConfig(**_GATED, sliding_window=6),
    "qwen2": Qwen2Config(**_GATED),
    "qwen3": Qwen3Config(**_GATED),
    "phi": PhiConfig(**_COMMON, intermediate_size=48),
    "gemma": GemmaConfig(**_GATED),
    "gpt_neo": GPTNeoConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_layers=LAYERS,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        window_size=6,
        max_position_embeddings=64,
    ),
    "gpt_neox": GPTNeoXConfig(**_COMMON, intermediate_size=48),
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=LAYERS, n_head=4),
    "mpt": MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=LAYERS, n_heads=4),
    "falcon": FalconConfig(**_COMMON),
    "falcon_alibi": FalconConfig(**_COMMON, alibi=True, multi_query=False),
    "falcon_40b": FalconConfig(**_COMMON, new_decoder_architecture=True, num_kv_heads=2),
    "opt": OPTConfig(**_COMMON, ffn_dim=48, word_embed_proj_dim=32),
    "opt_350m": OPTConfig(
        **_COMMON, ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False
    ),
    "gemma2": Gemma2Config(**_GATED, sliding_window=6, final_logit_softcapping=3.0),
}


def tiny_model(architecture: str, seed: int = 0) -> LoadedModel:
    """A random float32 model of the architecture, with the golden models' tokenizer."""
    model, state = _made(architecture, seed)
    # As if the model had just been made: what is drawn next is the same, and its own.
    torch.set_rng_state(state)
    return wrap_model(deepcopy(model), AutoTokenizer.from_pretrained(TOKENIZER))


@cache
def _made(architecture: str, seed: int) -> tuple[PreTrainedModel, torch.Tensor]:
    """The model, and the state of the random numbers behind it."""
    torch.manual_seed(seed)
    # A copy: a test that changes its model's configuration changes no other test's.
    model = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[architecture]))
    # Freshly initialised weights are so small that every position says nearly the same.
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(8)
    return model, torch.get_rng_state()


def with_bos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer that begins every text with its BOS, as Llama 3's does."""
    copied = deepcopy(tokenizer)
    copied.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{copied.bos_token} $A",
        special_tokens=[(copied.bos_token, copied.bos_token_id)],
    )
    return copied
