"""Texts to tokens, with the places of the subject and the target found by character offsets.

Nothing here asks for a tokenizer's name: special tokens are whatever the tokenizer itself puts in
front, and spaces are where its own offsets say.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from sphere_bench.errors import SphereBenchError
from sphere_bench.models.loading import LoadedModel


class Encoding(NamedTuple):
    """Token ids of a text and the [start, end) characters that each stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class Continuation(NamedTuple):
    """A prompt and its target as one text; the last ``target_length`` tokens are the target's."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    target_length: int

    @property
    def predicting(self) -> range:
        """Indices of the tokens that predict the target's: each stands right before one of it."""
        return range(len(self.ids) - self.target_length - 1, len(self.ids) - 1)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Encoding:
    """Tokens of ``text`` as the model expects them: a BOS where the tokenizer adds one, no EOS."""
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    end = len(ids)
    # A tokenizer that closes every text with EOS would end the prompt before its target.
    while end and encoded["special_tokens_mask"][end - 1] and offsets[end - 1][1] == 0:
        end -= 1
    return Encoding(list(ids[:end]), [tuple(offset) for offset in offsets[:end]])


def encode_continuation(
    tokenizer: PreTrainedTokenizerBase, prompt: str, target: str
) -> Continuation:
    """``prompt``, one space and ``target``, tokenised as the one text that the model would read.

    A token that ends behind the prompt's last character belongs to the target.
    """
    prompt, target = prompt.rstrip(), target.strip()
    ids, offsets = encode(tokenizer, f"{prompt} {target}")
    target_length = sum(end > len(prompt) for _, end in offsets)
    return Continuation(ids, offsets, target_length)


def last_token_of(offsets: list[tuple[int, int]], start: int, end: int) -> int:
    """Index of the last token that holds a character of text[start:end]."""
    inside = [index for index, (left, right) in enumerate(offsets) if left < end and right > start]
    if not inside:
        raise SphereBenchError(f"no token covers the characters {start} to {end} of a prompt")
    return inside[-1]


def token_windows(
    loaded: LoadedModel, texts: Iterable[str], tokens: int, max_length: int
) -> Iterator[list[int]]:
    """The first ``tokens`` tokens of the texts, each text in rows of its own.

    A row has at most ``max_length`` tokens, and at most as many as the model has positions for.
    """
    length = min(max_length, loaded.positions or max_length)
    for text in texts:
        ids = encode(loaded.tokenizer, text).ids[:tokens]
        tokens -= len(ids)
        for start in range(0, len(ids), length):
            yield ids[start : start + length]
        if not tokens:
            return
