"""Turns texts into tokens, and finds the subject and the target by character offsets.

Nothing here depends on a tokenizer's name. The tokenizer itself adds its special tokens, and its
offsets show which characters belong to a token.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from sphere_bench.errors import SphereBenchError
from sphere_bench.models.loading import LoadedModel


class Encoding(NamedTuple):
    """Token ids of a text, and the characters [start, end) of each token."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class Continuation(NamedTuple):
    """A prompt and its target as one text. The last ``target_length`` tokens are the target's."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    target_length: int

    @property
    def predicting(self) -> range:
        """Indices of the tokens that predict the target's tokens: each is the one before."""
        return range(len(self.ids) - self.target_length - 1, len(self.ids) - 1)


class _Kept:
    """Texts with their tokens, up to so many characters: some 40 MB."""

    limit = 1 << 20

    def __init__(self) -> None:
        self.texts: dict[str, Encoding] = {}
        self.characters = 0

    def add(self, text: str, encoding: Encoding) -> None:
        self.characters += len(text)
        if self.characters > self.limit:
            self.texts.clear()
            self.characters = len(text)
        self.texts[text] = encoding


_kept: WeakKeyDictionary[PreTrainedTokenizerBase, _Kept] = WeakKeyDictionary()


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Encoding:
    """Tokens of ``text`` as the model expects them: with BOS if the tokenizer adds it, no EOS.

    What is edited and scored is tokenised once a run: the tokens are kept, and not to be changed.
    """
    kept = _kept.setdefault(tokenizer, _Kept())
    if text not in kept.texts:
        kept.add(text, _encode(tokenizer, text))
    return kept.texts[text]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Encoding:
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    end = len(ids)
    # Some tokenizers end every text with EOS, which would separate a prompt from its target.
    while end and encoded["special_tokens_mask"][end - 1] and offsets[end - 1][1] == 0:
        end -= 1
    return Encoding(list(ids[:end]), [tuple(offset) for offset in offsets[:end]])


def encode_continuation(
    tokenizer: PreTrainedTokenizerBase, prompt: str, target: str
) -> Continuation:
    """``prompt``, a space and ``target``, tokenised as one text, as the model would read it.

    A token that ends after the prompt's last character belongs to the target.
    """
    prompt, target = prompt.rstrip(), target.strip()
    ids, offsets = encode(tokenizer, f"{prompt} {target}")
    target_length = sum(end > len(prompt) for _, end in offsets)
    return Continuation(ids, offsets, target_length)


def ended(tokenizer: PreTrainedTokenizerBase, text: Continuation) -> Continuation:
    """``text`` with EOS behind it, as one more token of the target.

    Raises:
        SphereBenchError: the tokenizer has no EOS.
    """
    if tokenizer.eos_token_id is None:
        raise SphereBenchError(
            f"{tokenizer.name_or_path}: its tokenizer has no EOS to end a target with: set "
            "editor.method.end_of_text=false"
        )
    end = text.offsets[-1][1]
    return Continuation(
        [*text.ids, tokenizer.eos_token_id], [*text.offsets, (end, end)], text.target_length + 1
    )


def last_token_of(offsets: list[tuple[int, int]], start: int, end: int) -> int:
    """Index of the last token that contains a character of text[start:end]."""
    inside = [index for index, (left, right) in enumerate(offsets) if left < end and right > start]
    if not inside:
        raise SphereBenchError(f"no token covers the characters {start} to {end} of a prompt")
    return inside[-1]


def token_windows(
    loaded: LoadedModel,
    texts: Iterable[str],
    tokens: int,
    max_length: int,
    tokens_per_text: int | None = None,
) -> Iterator[list[int]]:
    """The first ``tokens`` tokens of the texts in rows; a row belongs to one text.

    A row has at most ``max_length`` tokens, and no more than the model has positions. Of one text
    at most its first ``tokens_per_text`` tokens count; ``None`` is no limit.
    """
    length = min(max_length, loaded.positions or max_length)
    for text in texts:  # each is read once, so that its tokens are not kept
        ids = _encode(loaded.tokenizer, text).ids[:tokens_per_text][:tokens]
        tokens -= len(ids)
        for start in range(0, len(ids), length):
            yield ids[start : start + length]
        if not tokens:
            return
