"""The prompts of the records in a step's scopes, as rows of a table."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from sphere_bench.data.records import EditDataset, EvalPrompt
from sphere_bench.evaluation.columns import Column
from sphere_bench.evaluation.probe import Moment

Value = TypeVar("Value")

#: The columns that say which prompt a row is of.
PROMPT = (
    Column("scope", "text", "batch, seen, first or all"),
    Column("case_id", "text", "the record's own name"),
    Column("edited_at", "whole", "step at which the record is edited"),
    Column("kind", "text", "kind of prompt: rewrite, paraphrase, neighbourhood, ..."),
    Column("prompt_index", "whole", "number of the prompt among the record's of this kind"),
)


class Asked(NamedTuple):
    """A prompt of a record in a scope.

    Attributes:
        record: the record's index in the dataset.
        place: the prompt's index among all of the record's.
        prompt: the prompt.
        row: the values of the columns :data:`PROMPT`.
    """

    record: int
    place: int
    prompt: EvalPrompt
    row: dict[str, Any]


def asked_prompts(
    dataset: EditDataset,
    moment: Moment,
    scopes: Mapping[str, Sequence[int]],
    most: int | None = None,
) -> Iterator[Asked]:
    """The prompts of the records in ``scopes``, scope by scope.

    Args:
        most: how many of a kind are taken of each record, the first ones; ``None`` takes all.
    """
    for scope, records in scopes.items():
        for record in records:
            case = dataset.records[record].case
            of_kind: Counter[str] = Counter()
            for place, prompt in enumerate(case.prompts):
                if of_kind[prompt.kind] == most:
                    continue
                row = {
                    "scope": scope,
                    "case_id": case.case_id,
                    "edited_at": moment.edited_at(record),
                    "kind": prompt.kind,
                    "prompt_index": of_kind[prompt.kind],
                }
                of_kind[prompt.kind] += 1
                yield Asked(record, place, prompt, row)


def by_record(
    values: Iterable[tuple[Asked, Value]],
) -> dict[str, list[list[tuple[str, Value]]]]:
    """Scope to its records: for each prompt of a record the name of its kind, and its value."""
    grouped: dict[str, dict[int, list[tuple[str, Value]]]] = {}
    for asked, value in values:
        records = grouped.setdefault(asked.row["scope"], {})
        records.setdefault(asked.record, []).append((asked.prompt.kind, value))
    return {scope: list(records.values()) for scope, records in grouped.items()}
