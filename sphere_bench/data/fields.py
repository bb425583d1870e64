"""Reads a raw record field by field, with errors that name the record and the field."""

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

from sphere_bench.data.checks import quote, subject_problem, text_problem
from sphere_bench.data.records import Accuracy, Headline, Record
from sphere_bench.errors import SphereBenchError


class Fields:
    """The fields of one record, or of an object inside it.

    Args:
        raw: what the file holds at this place.
        place: the file and the record; every error begins with it.
        known: the field names of the format; any other name is an error.
        prefix: dotted name of the object inside the record.

    Raises:
        SphereBenchError: ``raw`` is not an object.
    """

    def __init__(self, raw: object, place: str, known: Collection[str], prefix: str = "") -> None:
        if not isinstance(raw, Mapping):
            what = f"field {quote(prefix.rstrip('.'))}" if prefix else "it"
            raise SphereBenchError(f"{place}: {what} must be an object, not {quote(raw)}")
        # A parquet file has every column in every record, with null where a field is missing.
        self._raw: dict[Any, Any] = {k: v for k, v in raw.items() if v is not None}
        self._place = place
        self._known = known
        self._prefix = prefix

    def __contains__(self, name: str) -> bool:
        return name in self._raw

    def error(self, name: str, problem: str) -> SphereBenchError:
        """An error that names the record, the field and the problem."""
        return SphereBenchError(f"{self._place}: field {quote(self._prefix + name)} {problem}")

    def value(self, name: str) -> Any:
        """The value of a required field."""
        if name in self._raw:
            return self._raw[name]
        raise SphereBenchError(
            f"{self._place} has no field '{self._prefix}{name}'{self._meant_for(name)}"
        )

    def text(self, name: str) -> str:
        """A required text, without the spaces around it."""
        return self._checked(name, self.value(name))

    def optional_text(self, name: str) -> str | None:
        """A text that may be missing, but not be empty."""
        return self.text(name) if name in self else None

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; empty if the field is missing."""
        values = self._raw.get(name, [])
        if not isinstance(values, list | tuple):
            raise self.error(name, f"must be a list of texts, not {quote(values)}")
        return tuple(self._checked(f"{name}[{index}]", v) for index, v in enumerate(values))

    def text_or_texts(self, name: str) -> tuple[str, ...]:
        """One text or a list of texts; empty if the field is missing."""
        if isinstance(self._raw.get(name), str):
            return (self.text(name),)
        return self.texts(name)

    def first_text(self, name: str) -> str:
        """The text of a required field, or the first one of its list, or of its list of lists."""
        value = self.value(name)
        while isinstance(value, list | tuple) and value:
            value = value[0]
        return self._checked(name, value)

    def section(self, name: str, known: Collection[str]) -> "Fields":
        """A required object."""
        return Fields(self.value(name), self._place, known, f"{self._prefix}{name}.")

    def sections(self, name: str, known: Collection[str]) -> "list[Fields]":
        """A list of objects; empty if the field is missing."""
        values = self._raw.get(name, [])
        if not isinstance(values, list | tuple):
            raise self.error(name, f"must be a list of objects, not {quote(values)}")
        return [
            Fields(value, self._place, known, f"{self._prefix}{name}[{index}].")
            for index, value in enumerate(values)
        ]

    def case_id(self, index: int, name: str = "case_id") -> str:
        """The record's own id, in the field ``name``, or its index in the file."""
        value = self._raw.get(name, index)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self._checked(name, value)

    def check_known(self) -> None:
        """Raise if the format has no field of some name in the record."""
        for name in self._raw:
            if name in self._known:
                continue
            close = difflib.get_close_matches(str(name), self._known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(self._known)}"
            raise self.error(str(name), f"is unknown; {hint}")

    def _meant_for(self, name: str) -> str:
        unknown = [str(other) for other in self._raw if other not in self._known]
        close = difflib.get_close_matches(name, unknown, n=1)
        return f"; is {quote(self._prefix + close[0])} meant for it?" if close else ""

    def _checked(self, name: str, value: object) -> str:
        problem = text_problem(value)
        if problem:
            raise self.error(name, problem)
        return cast(str, value).strip()


@dataclass(frozen=True)
class Format:
    """A file format of edit records.

    Attributes:
        name: its name in ``dataset.format``.
        known: the fields of a record in the public files.
        parse: makes a :class:`Record` from a record's fields and its index in the file. It raises
            SphereBenchError, which names the field.
        headline, accuracy, questions: see :class:`~sphere_bench.data.records.EditDataset`.
    """

    name: str
    known: tuple[str, ...]
    parse: Callable[[Fields, int], Record]
    headline: Headline
    accuracy: Accuracy
    questions: bool = False


def check_subject(fields: Fields, name: str, prompt: str, subject: str) -> None:
    """Raise unless ``subject`` occurs in ``prompt``, the field ``name``, exactly once."""
    problem = subject_problem(prompt, subject)
    if problem:
        raise fields.error(name, problem)
