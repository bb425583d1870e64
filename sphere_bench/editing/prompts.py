"""Prompts of an edit as tokens, after a context prefix, with the position of the subject."""

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from sphere_bench.data.records import EditRequest, Record
from sphere_bench.errors import SphereBenchError
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.tokens import encode, encode_continuation, last_token_of

#: The context that is the prompt alone; in other contexts it marks the prompt's place.
BARE = "{}"
# A tokenizer may add this many to a text.
_SPECIAL_TOKENS = 4


class PromptTokens(NamedTuple):
    """Tokens of a text and the index of the subject's last token among them."""

    ids: list[int]
    subject_last: int


class TargetTokens(NamedTuple):
    """As :class:`PromptTokens`; the last ``target_length`` tokens are the new target."""

    ids: list[int]
    subject_last: int
    target_length: int


def prompt_up_to_subject(
    tokenizer: PreTrainedTokenizerBase, request: EditRequest, context: str = BARE
) -> PromptTokens:
    """The prompt in its context up to the subject's last token; its key depends on no more."""
    text = context.replace(BARE, request.prompt)
    ids, offsets = encode(tokenizer, text)
    last = last_token_of(offsets, *_subject_span(request, context))
    return PromptTokens(ids[: last + 1], last)


def prompt_with_target(
    tokenizer: PreTrainedTokenizerBase, request: EditRequest, context: str = BARE
) -> TargetTokens:
    """The prompt in its context, followed by the new target."""
    prompt = context.replace(BARE, request.prompt)
    ids, offsets, length = encode_continuation(tokenizer, prompt, request.target_new)
    last = last_token_of(offsets, *_subject_span(request, context))
    return TargetTokens(ids, last, length)


def essence_prompt(tokenizer: PreTrainedTokenizerBase, request: EditRequest) -> PromptTokens:
    """The prompt "{subject} is a", up to the subject's last token.

    An edit should not change which token the model predicts there.
    """
    ids, offsets = encode(tokenizer, f"{request.subject} is a")
    last = last_token_of(offsets, 0, len(request.subject))
    return PromptTokens(ids[: last + 1], last)


def shared_beginning(rows: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all rows begin with."""
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return [column[0] for column in columns]


def check_prompts_fit(
    loaded: LoadedModel, records: Sequence[Record], contexts: Sequence[str]
) -> None:
    """Check that all prompts of the records, with their targets, fit into the model.

    Raises:
        SphereBenchError: a prompt with its target has more tokens than the model has positions.
    """
    if loaded.positions is None:
        return
    for record in records:
        request = record.request
        pairs = [
            *((context.replace(BARE, request.prompt), request.target_new) for context in contexts),
            *(
                (asked.prompt, target)
                for asked in record.case.prompts
                for target in (asked.target_new, asked.target_true)
                if target is not None
            ),
        ]
        for prompt, target in pairs:
            # A token is at least one byte long, special tokens excepted.
            if len(f"{prompt} {target}".encode()) + _SPECIAL_TOKENS <= loaded.positions:
                continue
            tokens = len(encode_continuation(loaded.tokenizer, prompt, target).ids)
            if tokens > loaded.positions:
                raise SphereBenchError(
                    f"case {request.case_id}: a prompt with its target has {tokens} tokens, the "
                    f"model {loaded.positions} positions: shorten it or leave the record out"
                )


def _subject_span(request: EditRequest, context: str) -> tuple[int, int]:
    start = context.index(BARE) + request.prompt.index(request.subject)
    return start, start + len(request.subject)
