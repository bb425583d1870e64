"""A file of records in one of the known formats. The package's own datasets are loaded by it."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from sphere_bench.data.checks import quote
from sphere_bench.data.counterfact import COUNTERFACT
from sphere_bench.data.easyedit import EASYEDIT
from sphere_bench.data.fields import Fields, Format
from sphere_bench.data.portability import FIELD as PORTABILITY_FIELD
from sphere_bench.data.qaedit import QAEDIT
from sphere_bench.data.records import KINDS, PORTABILITY, Record
from sphere_bench.data.sources import read_source
from sphere_bench.data.zsre import Target, zsre_format
from sphere_bench.errors import SphereBenchError, check_choice

AUTO = "auto"


class RecordFile:
    """The records of a file, a download or a dataset on the hub, each parsed when it is read.

    Args:
        path: a JSON, JSONL, parquet, CSV or TSV file, a URL of one, a name on the Hugging Face hub
            or ``bundled`` (the tiny GPT-2's facts); ``None`` downloads ``url``.
        url: the official download.
        format: ``counterfact``, ``easyedit``, ``qaedit`` or ``zsre``; ``auto`` decides by the
            fields.
        split: the split to take from a dataset on the hub that has several.
        target: ZsRE's field with the edit's target, ``answers`` or ``alt``.

    Attributes:
        place: where the records come from, for messages.
        headline, accuracy, questions: the format's own, see
            :class:`~sphere_bench.data.records.EditDataset`.
        kinds: those of every file, and portability where a record has it.

    Raises:
        SphereBenchError: there is no such file, or its format is unknown.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        url: str | None = None,
        format: str = AUTO,
        split: str | None = None,
        target: Target = "answers",
    ) -> None:
        check_choice("dataset.target", target, get_args(Target))
        formats = (COUNTERFACT, EASYEDIT, zsre_format(target), QAEDIT)
        check_choice("dataset.format", format, (AUTO, *(known.name for known in formats)))
        self.place, self._raw = read_source(path, url, format, split)
        self._format = _choose_format(self._raw, formats, format, self.place)
        self.headline = self._format.headline
        self.accuracy = self._format.accuracy
        self.questions = self._format.questions
        portable = any(isinstance(raw, Mapping) and raw.get(PORTABILITY_FIELD) for raw in self._raw)
        self.kinds = (*KINDS, PORTABILITY) if portable else KINDS

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, index: int) -> Record:
        """The record at ``index``.

        Raises:
            SphereBenchError: it is invalid; the message names the record and the field.
        """
        fields = Fields(self._raw[index], f"{self.place}: record {index}", self._format.known)
        return self._format.parse(fields, index)


def _choose_format(raw: Sequence[Any], formats: Sequence[Format], asked: str, place: str) -> Format:
    """The format ``asked`` for; with ``auto`` the one that shares most fields with a record."""
    detected = _detect_format(raw, formats)
    if asked == AUTO:
        if detected is None:
            names = ", ".join(map(quote, raw[0])) if isinstance(raw[0], Mapping) else ""
            raise SphereBenchError(
                f"{place}: record 0 has {f'the fields {names}' if names else 'no fields'}: "
                f"of none of the formats {', '.join(known.name for known in formats)} more than of "
                "another; with dataset.format=NAME you are told what is missing"
            )
        return detected
    if detected is not None and detected.name != asked:
        raise SphereBenchError(
            f"{place}: its fields are those of dataset.format={detected.name}, "
            f"not dataset.format={asked}: set it to {detected.name} or auto"
        )
    return next(known for known in formats if known.name == asked)


def _detect_format(raw: Sequence[Any], formats: Sequence[Format]) -> Format | None:
    """The format of the first record that fits one format better than all others."""
    for record in raw:
        if not isinstance(record, Mapping):
            continue
        shared = [sum(name in known.known for name in record) for known in formats]
        if shared.count(max(shared)) == 1:
            return formats[shared.index(max(shared))]
    return None
