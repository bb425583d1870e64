"""Reading a raw record field by field, with errors that say where it is wrong."""

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sphere_bench.data.records import Accuracy, Headline, Record
from sphere_bench.errors import SphereBenchError

LONGEST_QUOTE = 60


def quote(value: object) -> str:
    """``value`` as it would be typed, on one line and not too long."""
    text = repr(value)
    return text if len(text) <= LONGEST_QUOTE else f"{text[: LONGEST_QUOTE - 3]}..."


class Fields:
    """The fields of one record, or of an object inside it.

    Args:
        raw: what the file holds at this place.
        place: the file and the record, the beginning of every error.
        known: the names that the format has; anything else is an error.
        prefix: dotted name of the object inside the record.

    Raises:
        SphereBenchError: ``raw`` is no object.
    """

    def __init__(self, raw: object, place: str, known: Collection[str], prefix: str = "") -> None:
        if not isinstance(raw, Mapping):
            what = f"field {quote(prefix.rstrip('.'))}" if prefix else "it"
            raise SphereBenchError(f"{place}: {what} must be an object, not {quote(raw)}")
        # Parquet has a column for every record, null where the record lacks the field.
        self._raw: dict[Any, Any] = {k: v for k, v in raw.items() if v is not None}
        self._place = place
        self._known = known
        self._prefix = prefix

    def __contains__(self, name: str) -> bool:
        return name in self._raw

    def error(self, name: str, problem: str) -> SphereBenchError:
        """An error that names the record, the field and what is wrong with it."""
        return SphereBenchError(f"{self._place}: field {quote(self._prefix + name)} {problem}")

    def value(self, name: str) -> Any:
        """Any value of a field that must be there."""
        if name in self._raw:
            return self._raw[name]
        raise SphereBenchError(
            f"{self._place} has no field '{self._prefix}{name}'{self._meant_for(name)}"
        )

    def text(self, name: str) -> str:
        """A text that must be there; surrounding spaces are not part of it."""
        return self._checked(name, self.value(name))

    def optional_text(self, name: str) -> str | None:
        """A text that may be missing, but not empty."""
        return self.text(name) if name in self else None

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, empty where the field is missing."""
        values = self._raw.get(name, [])
        if not isinstance(values, list | tuple):
            raise self.error(name, f"must be a list of texts, not {quote(values)}")
        return tuple(self._checked(f"{name}[{index}]", v) for index, v in enumerate(values))

    def text_or_texts(self, name: str) -> tuple[str, ...]:
        """One text or a list of them, empty where the field is missing."""
        if isinstance(self._raw.get(name), str):
            return (self.text(name),)
        return self.texts(name)

    def section(self, name: str, known: Collection[str]) -> "Fields":
        """An object that must be there."""
        return Fields(self.value(name), self._place, known, f"{self._prefix}{name}.")

    def case_id(self, index: int) -> str:
        """The record's own id, or its place in the file."""
        value = self._raw.get("case_id", index)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self._checked("case_id", value)

    def check_known(self) -> None:
        """Raise if a field has a name that the format does not have."""
        for name in self._raw:
            if name in self._known:
                continue
            close = difflib.get_close_matches(str(name), self._known, n=1)
            mend = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(self._known)}"
            raise self.error(str(name), f"is unknown; {mend}")

    def _meant_for(self, name: str) -> str:
        unknown = [str(other) for other in self._raw if other not in self._known]
        close = difflib.get_close_matches(name, unknown, n=1)
        return f"; is {quote(self._prefix + close[0])} meant for it?" if close else ""

    def _checked(self, name: str, value: object) -> str:
        if not isinstance(value, str):
            raise self.error(name, f"must be a text, not {quote(value)}")
        text = value.strip()
        if not text:
            raise self.error(name, "is empty")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self.error(name, f"is not valid Unicode: {quote(value)}") from None
        return text


@dataclass(frozen=True)
class Format:
    """One way of writing edit records down.

    Attributes:
        name: what ``dataset.format`` calls it.
        known: the fields of a record in the public files.
        parse: from a record's fields and its index in the file to a :class:`Record`; raises
            SphereBenchError naming the field.
        headline, accuracy: see :class:`~sphere_bench.data.records.EditDataset`.
    """

    name: str
    known: tuple[str, ...]
    parse: Callable[[Fields, int], Record]
    headline: Headline
    accuracy: Accuracy


def check_subject(fields: Fields, name: str, prompt: str, subject: str) -> None:
    """Raise unless ``subject`` occurs in ``prompt`` exactly once.

    Editing reads the model at the subject's last token, so there must be one place for it.
    """
    first, last = prompt.find(subject), prompt.rfind(subject)
    if first < 0:
        raise fields.error(name, f"does not hold the subject {quote(subject)}: {quote(prompt)}")
    if first != last:
        raise fields.error(
            name, f"holds the subject {quote(subject)} more than once: {quote(prompt)}"
        )
