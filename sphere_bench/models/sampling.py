"""Text that a model writes: context prefixes, and a corpus if there is no other."""

from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor

from sphere_bench.errors import SphereBenchError
from sphere_bench.models.loading import LoadedModel

# Of the self-written corpus.
_TEXTS_AT_A_TIME = 32
_TOKENS_A_TEXT = 256


def sample_continuations(
    loaded: LoadedModel, starts: Tensor, tokens: int, *, seed: int, top_k: int
) -> list[str]:
    """Texts that the model samples after each row of token ids.

    Args:
        starts: [b, s], without padding.
        tokens: how many tokens to sample, exactly; 0 leaves the rows as they are.
        seed: the same seed, model, device and rows give the same texts.
        top_k: sample from the k most likely tokens; 0 samples from all.

    Returns:
        b texts, which begin with the rows' own tokens and have no special tokens.

    Raises:
        SphereBenchError: the model does not have so many positions.
    """
    if loaded.positions is not None and starts.shape[1] + tokens > loaded.positions:
        raise SphereBenchError(
            f"texts of {starts.shape[1] + tokens} tokens do not fit into a model with "
            f"{loaded.positions} positions: lower values.context_tokens, or the lengths in "
            "editor.context_lengths"
        )
    starts = starts.to(loaded.device)
    if not tokens:  # which transformers would refuse
        return [
            str(text) for text in loaded.tokenizer.batch_decode(starts, skip_special_tokens=True)
        ]
    devices = [loaded.device] if loaded.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        samples = loaded.model.generate(  # type: ignore[operator]
            starts,
            attention_mask=torch.ones_like(starts),
            do_sample=True,
            temperature=1.0,
            top_k=top_k,
            top_p=1.0,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=loaded.tokenizer.eos_token_id,
        )
    return [str(loaded.tokenizer.decode(row, skip_special_tokens=True)) for row in samples]


def self_written_texts(loaded: LoadedModel, first_batch: int = 0) -> Iterator[str]:
    """An endless corpus that the model writes: each text is sampled after one random token.

    It needs no data and no network, and follows the model's own distribution. The random first
    token makes the texts differ.

    Args:
        first_batch: another one, far from the first, gives other texts.
    """
    tokens = min(_TOKENS_A_TEXT, (loaded.positions or _TOKENS_A_TEXT + 1) - 1)
    for batch in count(first_batch):
        draw = torch.Generator().manual_seed(batch)
        vocabulary = loaded.model.config.get_text_config().vocab_size
        starts = torch.randint(vocabulary, (_TEXTS_AT_A_TIME, 1), generator=draw)
        yield from sample_continuations(loaded, starts, tokens, seed=batch, top_k=0)
