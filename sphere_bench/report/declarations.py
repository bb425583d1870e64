"""What a run says about its own tables: the scores, stages and prompts that are in them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

from sphere_bench.evaluation.columns import HEADLINE

CASES = "cases"
# Names become parts of file names and of the page's anchors.
_PLAIN_NAME = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class DeclaredColumn:
    """One column of a run's tables, as ``provenance.json`` describes it.

    Attributes:
        table, name: where it is.
        type: ``real`` for what may be a mean; see ``evaluation.columns``.
        unit: such as ``%``; empty for a plain number.
        meaning: one line.
        per: what a row of the table, or the value in it, belongs to: ``step``, ``scope``,
            ``layer`` or ``row``.
        metric, measure: of a score, such as ``efficacy`` and ``success``. A table of single prompts
            has the measure alone.
        stage: of seconds that a stage of a step took.
    """

    table: str
    name: str
    type: str = ""
    unit: str = ""
    meaning: str = ""
    per: str = "row"
    metric: str = ""
    measure: str = ""
    stage: str = ""


@dataclass(frozen=True)
class Kind:
    """A kind of prompt, as in the table ``cases``, and the metric that is made from it."""

    name: str
    metric: str


_Entry = TypeVar("_Entry", DeclaredColumn, Kind)


@dataclass(frozen=True)
class Declarations:
    """The columns of a run's tables and its kinds of prompts, in the order of the file."""

    columns: Sequence[DeclaredColumn]
    kinds: Sequence[Kind]

    @cached_property
    def scores(self) -> list[DeclaredColumn]:
        """The scores in the table ``steps``.

        The headline columns are left out: they repeat one of the measures.
        """
        return [
            column
            for column in self.columns
            if column.table == "steps" and column.metric and column.measure not in ("", HEADLINE)
        ]

    @property
    def beside_scores(self) -> list[DeclaredColumn]:
        """The numbers of a scope that are no scores, such as an entropy."""
        return [
            column
            for column in self.columns
            if (column.table, column.per, column.type) == ("steps", "scope", "real")
            and not column.metric
        ]

    @property
    def measures(self) -> list[str]:
        return unique(column.measure for column in self.scores)

    def scores_of(self, measure: str) -> dict[str, DeclaredColumn]:
        """Metric to its column, for one measure."""
        return {column.metric: column for column in self.scores if column.measure == measure}

    def prompts_of(self, measure: str) -> tuple[str, str]:
        """The table of single prompts that has a measure, and the measure's column there."""
        own = [
            (column.table, column.name)
            for column in self.columns
            if column.measure == measure and column.table != "steps"
        ]
        return own[0] if own else (CASES, measure)

    @property
    def stages(self) -> dict[str, str]:
        """Stage to the column with its seconds."""
        return {column.stage: column.name for column in self.columns if column.stage}

    @property
    def tables(self) -> list[str]:
        return unique(column.table for column in self.columns)

    def is_per_step(self, table: str) -> bool:
        """Whether the table has rows of every step."""
        return any(column.table == table and column.per != "row" for column in self.columns)


def read_declarations(provenance: Mapping[str, Any]) -> Declarations | None:
    """What ``provenance.json`` declares; None where it declares nothing or is damaged."""
    try:
        columns = [_read(DeclaredColumn, entry) for entry in provenance["columns"]]
        kinds = [_read(Kind, entry) for entry in provenance.get("kinds", ())]
    except (KeyError, TypeError, AttributeError):
        return None
    return Declarations([column for column in columns if _is_plain(column)], kinds)


def unique(names: Iterable[str]) -> list[str]:
    """Each name once, in the order of first appearance."""
    return list(dict.fromkeys(names))


def is_plain_name(name: str) -> bool:
    """Whether ``name`` may become part of a file name and of an anchor."""
    return _PLAIN_NAME.fullmatch(name) is not None


def _read(cls: type[_Entry], entry: Mapping[str, Any]) -> _Entry:
    names = {each.name for each in fields(cls)}
    return cls(**{name: str(value or "") for name, value in entry.items() if name in names})


def _is_plain(column: DeclaredColumn) -> bool:
    names = (column.table, column.metric, column.measure, column.stage)
    return all(not name or is_plain_name(name) for name in names)
