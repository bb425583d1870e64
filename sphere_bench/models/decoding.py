"""Lets a model go on with texts, many at once, with cached keys and values."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sphere_bench.errors import SphereBenchError
from sphere_bench.models.batching import Budget, backing_off
from sphere_bench.models.hooks import select_positions
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.tokens import encode

# A tokenizer may add this many to a text.
_SPECIAL_TOKENS = 4
# For one token of each row the whole model is read, so that wide batches are worth their memory:
# keys and values of this many times the tokens of a forward over whole texts.
_WIDER = 4


class Choose(Protocol):
    """Chooses each row's next token."""

    def __call__(self, logits: Tensor, rows: Sequence[int], places: Sequence[int], /) -> Tensor:
        """The tokens [n] for ``logits`` [n, vocab].

        Args:
            rows: which rows the logits are of, by their numbers in what was asked for.
            places: how many tokens each of them has said so far.
        """


def likeliest(logits: Tensor, _rows: Sequence[int], _places: Sequence[int]) -> Tensor:
    """Greedy decoding."""
    return logits.argmax(dim=-1)


@dataclass
class _Row:
    """A text that the model goes on with: what it was given and what it has said."""

    number: int
    ids: list[int]
    length: int
    said: list[int] = field(default_factory=list)


@torch.no_grad()
def continuations(
    loaded: LoadedModel,
    rows: Sequence[Sequence[int]],
    lengths: Sequence[int],
    choose: Choose = likeliest,
    ends: Callable[[int], bool] = lambda _token: False,
    *,
    tokens_per_batch: int | Budget = 4096,
) -> list[list[int]]:
    """The tokens that the model says behind each row.

    Nothing is padded. The rows of a batch begin with as many tokens as the shortest has. Then every
    forward adds a token to each: a longer row's own until it has read them all, what the model says
    from there on. So a row has the positions, the mask and the cache that it would have alone,
    whatever the architecture.

    Args:
        rows: token ids, at least one in each.
        lengths: how many tokens each row may have in the end, its own among them. The model's
            positions limit them as well.
        choose: decides the next tokens.
        ends: whether a token is a row's last one.
        tokens_per_batch: padded tokens in a forward over whole texts, halved as often as memory
            runs out. Here the keys and values of four times as many are kept.

    Returns:
        What was said behind each row, the token that ends it included. A row whose logits are NaN
        says nothing more.
    """
    longest = loaded.positions or max(lengths, default=0)

    def say_all(size: int) -> dict[int, list[int]]:
        said: dict[int, list[int]] = {}
        for batch in _batches(rows, lengths, _WIDER * size):
            asked = [_Row(row, list(rows[row]), min(lengths[row], longest)) for row in batch]
            _say(loaded, asked, choose, ends)
            said.update((row.number, row.said) for row in asked)
        return said

    said = backing_off(say_all, tokens_per_batch)
    return [said[row] for row in range(len(rows))]


def check_room(
    loaded: LoadedModel,
    prompts: Iterable[str],
    key: str,
    form: Callable[[str], str] = lambda prompt: prompt,
) -> None:
    """Check that the model has a position left behind each prompt.

    Args:
        key: of the configuration whose prompts these are, for the error.
        form: puts a prompt into the text that the model is given.

    Raises:
        SphereBenchError: a text has as many tokens as the model has positions.
    """
    if loaded.positions is None:
        return
    around = len(form("?").encode()) + _SPECIAL_TOKENS
    for prompt in prompts:
        # A token is at least one byte long, special tokens excepted.
        if len(prompt.encode()) + around < loaded.positions:
            continue
        tokens = len(encode(loaded.tokenizer, form(prompt)).ids)
        if tokens >= loaded.positions:
            raise SphereBenchError(
                f"{key}: a prompt has {tokens} tokens, the model {loaded.positions} positions, so "
                "that nothing can be said behind it: leave its record out"
            )


def _batches(
    rows: Sequence[Sequence[int]], lengths: Sequence[int], size: int
) -> Iterator[list[int]]:
    """Rows of similar length together, at most ``size`` tokens in the end."""
    batch: list[int] = []
    width = 0
    for row in sorted(range(len(rows)), key=lambda row: len(rows[row])):
        width = max(width, lengths[row])
        if batch and (len(batch) + 1) * width > size:
            yield batch
            batch, width = [], lengths[row]
        batch.append(row)
    if batch:
        yield batch


def _say(
    loaded: LoadedModel, rows: list[_Row], choose: Choose, ends: Callable[[int], bool]
) -> None:
    """Add what the model says to every row of a batch."""
    rows = [row for row in rows if len(row.ids) < row.length]
    cache: Any = None
    start = 0
    while rows:
        end = min(len(row.ids) for row in rows)
        inputs = torch.tensor([row.ids[start:end] for row in rows], device=loaded.device)
        speaking = [place for place, row in enumerate(rows) if len(row.ids) == end]
        places = torch.tensor(speaking, device=loaded.device)
        columns = torch.full_like(places, end - start - 1)
        with select_positions(loaded.layout.head, places, columns):
            output = loaded.model(input_ids=inputs, past_key_values=cache, use_cache=True)
        cache, logits = output.past_key_values, output.logits[0]
        asked = [rows[place] for place in speaking]
        chosen = choose(logits, [row.number for row in asked], [len(row.said) for row in asked])
        silent = logits.isnan().any(dim=-1)
        # One wait for the device a token.
        tokens, silences = torch.stack([chosen, silent.to(chosen)]).tolist()
        for row, token, is_silent in zip(asked, tokens, silences, strict=True):
            if is_silent:
                row.length = end
                continue
            row.ids.append(token)
            row.said.append(token)
            if ends(token):
                row.length = len(row.ids)
        going_on = [place for place, row in enumerate(rows) if len(row.ids) < row.length]
        if 0 < len(going_on) < len(rows):
            kept = torch.tensor(going_on, device=loaded.device)
            for entry in cache.layers:
                entry.batch_select_indices(kept.to(entry.keys.device))
        rows = [rows[place] for place in going_on]
        start = end
