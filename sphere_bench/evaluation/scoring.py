"""Log-probabilities and argmax matches of targets behind prompts, many at once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sphere_bench.errors import SphereBenchError
from sphere_bench.models.batching import Budget, backing_off, launch_price, pad_right, token_batches
from sphere_bench.models.hooks import select_positions
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.tokens import encode_continuation


class TargetScore(NamedTuple):
    """How a model takes a target, teacher forced.

    Attributes:
        nll: mean negative log-likelihood of the target's tokens, in nats.
        matches: for each of them whether it is the model's most likely next token.
    """

    nll: float
    matches: tuple[bool, ...]


class TargetPlace(NamedTuple):
    """Where a target is read off: in which row, behind which columns, for which tokens."""

    row: tuple[int, ...]
    columns: range
    tokens: list[int]


def score_targets(
    loaded: LoadedModel, pairs: Sequence[tuple[str, str]], tokens_per_batch: int | Budget = 4096
) -> list[TargetScore]:
    """Score every target behind its prompt.

    A prompt and its target are tokenised as one text, so that a target has the tokens that the
    model would read, and a BOS is wherever the tokenizer puts it. Rows are padded on the right,
    behind the causal mask, whatever side the tokenizer prefers. A row that begins another one is
    read off the longer one: the two targets of a prompt mostly cost one row.

    Args:
        loaded: the model and its tokenizer.
        pairs: prompts and targets; they are joined by one space.
        tokens_per_batch: padded tokens in a forward pass; halved as often as memory runs out.

    Returns:
        One score a pair, in the order of ``pairs``. A model that puts out NaN matches nothing.

    Raises:
        SphereBenchError: the tokenizer leaves nothing of a prompt or a target.
    """
    requests = {pair: target_place(loaded, *pair) for pair in dict.fromkeys(pairs)}
    if not requests:
        return []
    host_of = _hosts([request.row for request in requests.values()])
    of_host: dict[tuple[int, ...], list[tuple[str, str]]] = {}
    for pair, request in requests.items():
        of_host.setdefault(host_of[request.row], []).append(pair)
    hosts = list(of_host)

    def score_all(size: int) -> dict[tuple[str, str], TargetScore]:
        price = launch_price(loaded.device)
        batches = token_batches([len(host) for host in hosts], size, price)
        asked = [[pair for index in batch for pair in of_host[hosts[index]]] for batch in batches]
        pieces = [
            _Piece(
                [hosts[index] for index in batch],
                [
                    (place, requests[pair])
                    for place, index in enumerate(batch)
                    for pair in of_host[hosts[index]]
                ],
            )
            for batch in batches
        ]
        found = loaded.team.map(loaded, _score_pieces, pieces)
        return {
            pair: score
            for pairs, scores in zip(asked, found, strict=True)
            for pair, score in zip(pairs, scores, strict=True)
        }

    scores = backing_off(score_all, tokens_per_batch)
    return [scores[pair] for pair in pairs]


def target_place(loaded: LoadedModel, prompt: str, target: str) -> TargetPlace:
    """Where ``target`` is read off behind ``prompt``, the two tokenised as one text.

    Raises:
        SphereBenchError: the tokenizer leaves nothing of the prompt or the target.
    """
    text = encode_continuation(loaded.tokenizer, prompt, target)
    if not 0 < text.target_length < len(text.ids):
        part = "prompt" if text.target_length else "target"
        raise SphereBenchError(
            f"the tokenizer leaves no token of the {part} in {prompt!r}, {target!r}"
        )
    # The last token is never read: nothing behind it is asked for.
    targets = [text.ids[column + 1] for column in text.predicting]
    return TargetPlace(tuple(text.ids[:-1]), text.predicting, targets)


def _hosts(rows: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """For every distinct row a longest one that it begins, itself where there is none."""
    host_of: dict[tuple[int, ...], tuple[int, ...]] = {}
    following: tuple[int, ...] | None = None
    # In sorted order, whatever a row begins comes right behind it.
    for row in sorted(set(rows), reverse=True):
        begins = following is not None and following[: len(row)] == row
        host_of[row] = host_of[following] if begins and following is not None else row
        following = row
    return host_of


class _Piece(NamedTuple):
    """What is scored in one forward pass.

    Attributes:
        rows: tokens.
        requests: each with its row's place in ``rows``.
    """

    rows: Sequence[tuple[int, ...]]
    requests: Sequence[tuple[int, TargetPlace]]


@torch.no_grad()
def _score_pieces(loaded: LoadedModel, pieces: Sequence[_Piece]) -> list[list[TargetScore]]:
    return [_score_piece(loaded, piece) for piece in pieces]


def _score_piece(loaded: LoadedModel, piece: _Piece) -> list[TargetScore]:
    rows, requests = piece
    slots: dict[tuple[int, int], int] = {}
    slot_of_token = [
        slots.setdefault((place, column), len(slots))
        for place, request in requests
        for column in request.columns
    ]
    tokens = [token for _, request in requests for token in request.tokens]
    places = torch.tensor(list(slots), device=loaded.device)  # [n, 2]
    with select_positions(loaded.layout.head, places[:, 0], places[:, 1]):
        output = loaded.model(input_ids=pad_right(rows).to(loaded.device), use_cache=False)
    nll, matches = _read_tokens(
        output.logits[0],
        torch.tensor(slot_of_token, device=loaded.device),
        torch.tensor(tokens, device=loaded.device),
    )
    scores = []
    start = 0
    for _, request in requests:
        end = start + len(request.tokens)
        mean = sum(nll[start:end]) / len(request.tokens)
        scores.append(TargetScore(mean, tuple(matches[start:end])))
        start = end
    return scores


def _read_tokens(logits: Tensor, slots: Tensor, tokens: Tensor) -> tuple[list[float], list[bool]]:
    """NLL of ``tokens`` at the rows ``slots`` of ``logits`` [n, vocab], and whether they lead."""
    logits = logits.float()
    best, leading = logits.max(dim=-1)
    normalizer = logits.logsumexp(dim=-1)
    nll = normalizer[slots] - logits[slots, tokens]
    matches = (leading[slots] == tokens) & ~best[slots].isnan()
    return nll.tolist(), matches.tolist()
