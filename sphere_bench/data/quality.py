"""Warnings about records that can be edited, but probably should not be edited like this."""

from collections.abc import Iterable, Sequence

from sphere_bench.data.checks import is_part_of_a_word, quote
from sphere_bench.data.facts import fact_of, overwritten_by, target_of
from sphere_bench.data.records import PARAPHRASE, EditDataset, EditRequest, Record

_NAMED = 5


def warnings_of(dataset: EditDataset, batch_size: int, superseded: str = "leave_out") -> list[str]:
    """One line for each kind of problem, with the number of records and their case ids.

    Args:
        dataset: the run's records.
        batch_size: records in a batch.
        superseded: the configuration's ``evaluation.superseded``.
    """
    requests = [record.request for record in dataset.records]
    at_odds = _at_odds_within_a_batch(requests, batch_size)
    overwritten = [requests[index].case_id for index in sorted(overwritten_by(requests))]
    already_true = [each.case_id for each in requests if each.target_new == each.target_true]
    inside = [each.case_id for each in requests if is_part_of_a_word(each.prompt, each.subject)]
    shared = _shared_paraphrases(dataset.records)
    lines = []
    if at_odds:
        lines.append(
            f"{_count(at_odds, 'prompt')} edited to several targets within a batch, so that none "
            f"of these is written as it should be: cases {_named(at_odds)}"
        )
    if overwritten:
        fate = "still count in" if superseded == "score" else "are left out of"
        lines.append(
            f"{_count(overwritten, 'record')} overwritten by a later edit of the same prompt to "
            f"another target: from then on they {fate} the scores "
            f"(evaluation.superseded={superseded}): cases {_named(overwritten)}"
        )
    if already_true:
        lines.append(
            f"{_count(already_true, 'record')} edited to the true answer itself (the new target "
            f"equals the true one), so that success is never reached: cases {_named(already_true)}"
        )
    if inside:
        lines.append(
            f"{_count(inside, 'record')} edited at a subject that is only a part of a longer word "
            f"of the prompt: cases {_named(inside)}"
        )
    if shared:
        lines.append(
            f"{_count(shared, 'paraphrase')} the same for several facts with unlike targets, so "
            f"that no answer is right for all of them: {_named(map(quote, shared))}"
        )
    return [f"{dataset.name}: {line}" for line in lines]


def _at_odds_within_a_batch(requests: Sequence[EditRequest], batch_size: int) -> list[str]:
    """For each fact that has several targets in a batch, its case ids joined by "and"."""
    groups: dict[tuple[int, str], list[EditRequest]] = {}
    for index, request in enumerate(requests):
        groups.setdefault((index // batch_size, fact_of(request)), []).append(request)
    return [
        " and ".join(request.case_id for request in group)
        for group in groups.values()
        if len({target_of(request) for request in group}) > 1
    ]


def _shared_paraphrases(records: Iterable[Record]) -> list[str]:
    """Paraphrases that ask for several facts at a time, or for none."""
    targets: dict[str, dict[str, str]] = {}
    for record in records:
        for each in record.case.prompts:
            if each.kind == PARAPHRASE.name:
                facts = targets.setdefault(each.prompt, {})
                facts[fact_of(record.request)] = target_of(record.request)
    return [prompt for prompt, facts in targets.items() if len(set(facts.values())) > 1]


def _count(items: Sequence[str], what: str) -> str:
    return f"{len(items)} {what} is" if len(items) == 1 else f"{len(items)} {what}s are"


def _named(items: Iterable[str]) -> str:
    listed = list(items)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more
