"""From a configuration to the records of a run, checked and in their order."""

import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from sphere_bench.data.counterfact import COUNTERFACT
from sphere_bench.data.easyedit import EASYEDIT
from sphere_bench.data.fields import Fields, Format, quote
from sphere_bench.data.records import EditDataset, Headline, Record, fingerprint_records
from sphere_bench.data.sources import read_source
from sphere_bench.data.zsre import Target, zsre_format
from sphere_bench.errors import SphereBenchError, check_choice

logger = logging.getLogger(__name__)

AUTO = "auto"
OnInvalid = Literal["error", "skip"]


def load_dataset(
    name: str,
    path: str | None = None,
    *,
    url: str | None = None,
    format: str = AUTO,
    split: str | None = None,
    target: Target = "answers",
    headline: Headline | None = None,
    total: int | None = None,
    start: int = 0,
    seed: int = 0,
    shuffle: bool = False,
    on_invalid: OnInvalid = "error",
) -> EditDataset:
    """The records of a run, in the order in which they are edited.

    Args:
        name: the dataset's name, for reports.
        path: a JSON, JSONL or parquet file, a URL, a name on the Hugging Face hub or ``bundled``;
            ``None`` downloads ``url``.
        url: the official download.
        format: ``counterfact``, ``easyedit``, ``zsre``, or ``auto`` to tell by the fields.
        split: the split to take from a dataset on the hub that has several.
        target: ZsRE's field with the edit's target, ``answers`` or ``alt``.
        headline: ``success`` or ``accuracy`` as the reported metric; ``None`` is the format's.
        total: number of records, ``None`` for all from ``start`` on.
        start: number of valid records to leave out first.
        seed: decides the order where ``shuffle`` is set.
        shuffle: edit in an order drawn from ``seed`` instead of the file's.
        on_invalid: ``error`` stops at the first invalid record, ``skip`` leaves it out and warns.
            Records behind the last one that is used are not looked at.

    Raises:
        SphereBenchError: there is no such file, its format is unknown, a record is invalid, or
            there are fewer than ``start + total`` records.
    """
    check_choice("dataset.target", target, get_args(Target))
    check_choice("dataset.headline", headline, (*get_args(Headline), None))
    check_choice("dataset.on_invalid", on_invalid, get_args(OnInvalid))
    if start < 0 or (total is not None and total < 1):
        raise SphereBenchError(
            f"edits.total={total}, edits.start={start}: must be at least 1 and at least 0"
        )
    formats = (COUNTERFACT, EASYEDIT, zsre_format(target))
    check_choice("dataset.format", format, (AUTO, *(known.name for known in formats)))
    place, raw = read_source(path, url, format, split)
    chosen = _choose_format(raw, formats, format, place)
    order = shuffled(len(raw), seed) if shuffle else range(len(raw))
    stop = None if total is None else start + total
    valid, skipped = _valid_records(raw, order, chosen, place, stop, skip=on_invalid == "skip")
    records = tuple(valid[start:])
    if len(records) < (total or 1):
        left_out = f" ({skipped} invalid ones skipped)" if skipped else ""
        raise SphereBenchError(
            f"edits.total={total}, edits.start={start}: {place} holds {len(valid)} records"
            f"{left_out}; lower {'edits.start' if len(valid) <= start else 'edits.total'}"
        )
    return EditDataset(
        name=name,
        records=records,
        headline=headline or chosen.headline,
        accuracy=chosen.accuracy,
        fingerprint=fingerprint_records(records),
    )


def shuffled(count: int, seed: int) -> list[int]:
    """The indices 0 to ``count`` - 1 in an order that depends on ``seed`` alone.

    Every index has a random number of its own, so a longer file keeps the order among the first.
    """
    draw = random.Random(seed)
    priorities = [draw.random() for _ in range(count)]
    return sorted(range(count), key=priorities.__getitem__)


def _valid_records(
    raw: Sequence[Any],
    order: Iterable[int],
    chosen: Format,
    place: str,
    stop: int | None,
    *,
    skip: bool,
) -> tuple[list[Record], int]:
    """The first ``stop`` valid records in ``order``, and how many invalid ones lay between."""
    valid: list[Record] = []
    skipped = 0
    index_of: dict[str, int] = {}
    for index in order:
        if len(valid) == stop:
            break
        try:
            fields = Fields(raw[index], f"{place}: record {index}", chosen.known)
            record = chosen.parse(fields, index)
            case_id = record.request.case_id
            if case_id in index_of:
                raise fields.error(
                    "case_id", f"is {quote(case_id)}, as in record {index_of[case_id]}"
                )
        except SphereBenchError as error:
            if not skip:
                raise
            if not skipped:
                logger.warning("skipping invalid records, the first: %s", error)
            skipped += 1
            continue
        index_of[case_id] = index
        valid.append(record)
    if skipped:
        logger.warning("%s: skipped %d invalid records", place, skipped)
    return valid, skipped


def _choose_format(raw: Sequence[Any], formats: Sequence[Format], asked: str, place: str) -> Format:
    """The format asked for, or the one whose field names a record has most of."""
    detected = _detect_format(raw, formats)
    if asked == AUTO:
        if detected is None:
            names = ", ".join(map(quote, raw[0])) if isinstance(raw[0], Mapping) else ""
            raise SphereBenchError(
                f"{place}: record 0 has {f'the fields {names}' if names else 'no fields'}: "
                f"of none of the formats {', '.join(known.name for known in formats)}"
            )
        return detected
    if detected is not None and detected.name != asked:
        raise SphereBenchError(
            f"{place}: its fields are those of dataset.format={detected.name}, "
            f"not dataset.format={asked}: set it to {detected.name} or auto"
        )
    return next(known for known in formats if known.name == asked)


def _detect_format(raw: Sequence[Any], formats: Sequence[Format]) -> Format | None:
    """By the first record that fits one format better than the others."""
    for record in raw:
        if not isinstance(record, Mapping):
            continue
        shared = [sum(name in known.known for name in record) for known in formats]
        if shared.count(max(shared)) == 1:
            return formats[shared.index(max(shared))]
    return None
