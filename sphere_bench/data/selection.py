"""Selects the records of a run from what a dataset's loader returns.

``dataset.loader`` names a class or a function, in this package or outside it, with keys of its own.
It returns a sequence of :class:`~sphere_bench.data.records.Record`: a list, or an object with
``__len__`` and ``__getitem__``. Such an object may parse a record only when it is read, and raises
SphereBenchError if the record is invalid. The sequence may have these attributes:

- ``headline``: ``success`` (the default) or ``accuracy``;
- ``accuracy``: ``all_tokens`` (the default) or ``mean_tokens``;
- ``kinds``: the kinds of its prompts, :data:`~sphere_bench.data.records.KINDS` by default;
- ``questions``: whether every prompt is a question, even without a question mark;
- ``place``: where the records come from, for messages.

Everything else is done here, in the same way for every dataset.
"""

import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, cast, get_args

from sphere_bench.data.checks import quote, subject_problem, text_problem
from sphere_bench.data.records import (
    HEADLINES,
    KINDS,
    Accuracy,
    EditDataset,
    Headline,
    PromptKind,
    Record,
)
from sphere_bench.errors import SphereBenchError, check_choice

logger = logging.getLogger(__name__)

LOADER = "dataset.loader"


class Records(Protocol):
    """What a loader returns. The module's docstring lists the attributes that it may have."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


def select(
    source: Records,
    *,
    name: str,
    total: int | None = None,
    start: int = 0,
    shuffle: bool = False,
    seed: int = 0,
    headline: str | None = None,
    on_invalid: str = "error",
) -> EditDataset:
    """The records of a run, in the order in which they are edited.

    Args:
        source: what the dataset's loader returned.
        name: the dataset's name, for reports.
        total: number of records, ``None`` for all from ``start`` on.
        start: number of valid records to leave out first.
        shuffle: edit in an order drawn from ``seed`` instead of the source's.
        seed: decides the order where ``shuffle`` is set, and what ``pool`` draws.
        headline: ``success`` or ``accuracy``. ``None`` takes the source's own, but accuracy if no
            record has a true answer, because success compares with the true answer.
        on_invalid: ``error`` stops at the first invalid record, ``skip`` leaves it out and warns.
            Records after the last one that is used are not read.

    Raises:
        SphereBenchError: the source is not a sequence of records, a record is invalid, or there
            are fewer than ``start + total`` records.
    """
    check_choice("dataset.headline", headline, (*HEADLINES, None))
    check_choice("dataset.on_invalid", on_invalid, ("error", "skip"))
    if start < 0 or (total is not None and total < 1):
        raise SphereBenchError(
            f"edits.total={total}, edits.start={start}: must be at least 1 and at least 0"
        )
    _check_source(source)
    kinds = tuple(getattr(source, "kinds", KINDS))
    _check_kinds(kinds)
    place = getattr(source, "place", LOADER)
    order = shuffled(len(source), seed) if shuffle else range(len(source))

    def read(order: Iterable[int]) -> Iterator[Record | SphereBenchError]:
        return _read(source, order, kinds, place)

    valid: list[Record] = []
    invalid: list[SphereBenchError] = []
    last = len(order)  # how many of the order are read
    for position, found in enumerate(read(order), start=1):
        if isinstance(found, Record):
            valid.append(found)
            if total is not None and len(valid) == start + total:
                last = position
                break
        elif on_invalid == "error":
            raise found
        else:
            invalid.append(found)
    if invalid:
        logger.warning("skipping invalid records, the first: %s", invalid[0])
        logger.warning("%s: skipped %d invalid records", place, len(invalid))
    records = tuple(valid[start:])
    if len(records) < (total or 1):
        left_out = f" ({len(invalid)} invalid ones skipped)" if invalid else ""
        raise SphereBenchError(
            f"edits.total={total}, edits.start={start}: {place} holds {len(valid)} records"
            f"{left_out}; lower {'edits.start' if len(valid) <= start else 'edits.total'}"
        )

    def valid_ones(order: Iterable[int]) -> Iterator[Record]:
        for found in read(order):
            if isinstance(found, Record):
                yield found
            elif on_invalid == "error":
                raise found

    return EditDataset(
        name=name,
        records=records,
        headline=cast(Headline | None, headline) or _headline(source, records, place),
        accuracy=_accuracy(source),
        kinds=kinds,
        questions=bool(getattr(source, "questions", False)),
        drawn=lambda: valid_ones(shuffled(len(source), f"pool {seed}")),
        behind=lambda: valid_ones(reversed(order[last:])),
    )


def shuffled(count: int, seed: int | str) -> list[int]:
    """The indices 0 to ``count`` - 1 in an order that depends on ``seed`` alone.

    Every index gets a random number of its own. So the records of a file keep their order among
    each other when more are added to its end.
    """
    draw = random.Random(seed)
    priorities = [draw.random() for _ in range(count)]
    return sorted(range(count), key=priorities.__getitem__)


def _read(
    source: Records, order: Iterable[int], kinds: Sequence[PromptKind], place: str
) -> Iterator[Record | SphereBenchError]:
    """Each record in ``order``, or the error that it is invalid."""
    names = frozenset(kind.name for kind in kinds)
    index_of: dict[str, int] = {}
    for index in order:
        try:
            record = source[index]
            _check_record(record, names, f"{place}: record {index}")
            case_id = record.request.case_id
            if case_id in index_of:
                raise SphereBenchError(
                    f"{place}: record {index}: field 'case_id' is {quote(case_id)}, "
                    f"as in record {index_of[case_id]}"
                )
        except SphereBenchError as error:
            yield error
            continue
        index_of[case_id] = index
        yield record


def _check_source(source: object) -> None:
    """Raise unless ``source`` is a sequence that is not empty."""
    has_items = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    if not has_items or isinstance(source, str | bytes | Mapping):
        raise SphereBenchError(
            f"{LOADER} gave {_kind_of(source)}: it must give a sequence of Record, such as a list"
        )
    if not len(source):  # type: ignore[arg-type]
        raise SphereBenchError(f"{LOADER} gave no records")


def _check_kinds(kinds: Sequence[object]) -> None:
    """Raise unless these are kinds of prompts with names and metrics that differ."""
    for kind in kinds:
        if not isinstance(kind, PromptKind):
            raise SphereBenchError(f"{LOADER}: its kinds hold {_kind_of(kind)}, not a PromptKind")
        if kind.wants not in ("new", "true"):
            raise SphereBenchError(
                f"{LOADER}: the kind {quote(kind.name)} wants {quote(kind.wants)}: must be new or "
                "true"
            )
        if not kind.metric.isidentifier() or kind.metric == "score":
            raise SphereBenchError(
                f"{LOADER}: the kind {quote(kind.name)} has the metric {quote(kind.metric)}: must "
                "be letters, digits and _, and not score"
            )
    for attribute in ("name", "metric"):
        values = [getattr(kind, attribute) for kind in kinds]
        for value in values:
            if values.count(value) > 1:
                raise SphereBenchError(f"{LOADER}: two kinds have the {attribute} {quote(value)}")
    if not kinds:
        raise SphereBenchError(f"{LOADER}: its kinds are empty")


def _check_record(record: object, kinds: frozenset[str], place: str) -> None:
    """Raise unless ``record`` can be edited and scored.

    The records of a file have been checked before, those of a loader of your own have not.
    """
    if not isinstance(record, Record):
        raise SphereBenchError(f"{place} is {_kind_of(record)}, not a Record")
    request, case = record.request, record.case
    required = {
        "case_id": request.case_id,
        "prompt": request.prompt,
        "subject": request.subject,
        "target_new": request.target_new,
    }
    optional = {"target_true": request.target_true}
    for index, prompt in enumerate(case.prompts):
        required[f"prompts[{index}].prompt"] = prompt.prompt
        optional[f"prompts[{index}].target_new"] = prompt.target_new
        optional[f"prompts[{index}].target_true"] = prompt.target_true
        if prompt.kind not in kinds:
            raise SphereBenchError(
                f"{place}: prompts[{index}] is of the kind {quote(prompt.kind)}: the loader has "
                f"the kinds {', '.join(sorted(kinds))}"
            )
    required.update(
        (f"generation_prompts[{index}]", text) for index, text in enumerate(case.generation_prompts)
    )
    given = {name: text for name, text in optional.items() if text is not None}
    for name, text in {**required, **given}.items():
        problem = text_problem(text)
        if problem:
            raise SphereBenchError(f"{place}: {name} {problem}")
    problem = subject_problem(request.prompt, request.subject)
    if problem:
        raise SphereBenchError(f"{place}: prompt {problem}")
    if case.case_id != request.case_id:
        raise SphereBenchError(
            f"{place}: its request has the case_id {quote(request.case_id)}, its case "
            f"{quote(case.case_id)}: must be the same"
        )


def _headline(source: Records, records: Sequence[Record], place: str) -> Headline:
    """The source's headline, or accuracy if success is not defined for any edit."""
    headline: Headline = getattr(source, "headline", "success")
    check_choice(f"{LOADER}.headline", headline, HEADLINES)
    if headline == "success" and all(record.request.target_true is None for record in records):
        logger.warning(
            "%s: no record has a true answer to compare with, so the headline is accuracy; "
            "dataset.headline=success would keep success",
            place,
        )
        return "accuracy"
    return headline


def _accuracy(source: Records) -> Accuracy:
    accuracy: Accuracy = getattr(source, "accuracy", "all_tokens")
    check_choice(f"{LOADER}.accuracy", accuracy, get_args(Accuracy))
    return accuracy


def _kind_of(value: object) -> str:
    return f"an object of the type {type(value).__name__}"
