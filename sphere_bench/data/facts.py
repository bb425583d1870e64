"""Which edits are of the same fact, and which of them a later one contradicts."""

import unicodedata
from collections.abc import Sequence

from sphere_bench.data.records import EditRequest


def fact_of(request: EditRequest) -> str:
    """The fact that a request edits: its prompt, in which subject and relation stand.

    Two prompts ask for the same fact if they differ in nothing but capitals, spaces and the
    composition of letters (NFC).
    """
    return _normalized(request.prompt)


def target_of(request: EditRequest) -> str:
    """What the fact becomes, compared as prompts are."""
    return _normalized(request.target_new)


def overwritten_by(requests: Sequence[EditRequest]) -> dict[int, int]:
    """Which later edit gives a fact another target.

    Args:
        requests: in the order in which they are edited.

    Returns:
        Index of a request to that of the first later one of the same fact with another target.
        The same target once more contradicts nothing.
    """
    found: dict[int, int] = {}
    next_of: dict[str, int] = {}
    for index in reversed(range(len(requests))):
        following = next_of.get(fact_of(requests[index]))
        if following is not None:
            if target_of(requests[index]) != target_of(requests[following]):
                found[index] = following
            elif following in found:
                found[index] = found[following]
        next_of[fact_of(requests[index])] = index
    return found


def _normalized(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())
