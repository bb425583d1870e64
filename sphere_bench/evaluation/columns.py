"""What a run's tables hold: every column is declared once, as a value of these types.

The parquet schemas, the trackers, the report and ``docs/tables.md`` are made from the declarations.
"""

from dataclasses import dataclass, field
from typing import Literal

ColumnType = Literal["whole", "real", "text", "truth", "wholes", "reals"]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: of the column.
        type: ``whole`` (int64), ``real`` (float64), ``text``, ``truth`` (bool), or a list of
            ``wholes`` or ``reals``. A real number may be missing; it is then null, NaN in pandas.
        meaning: one line for the reader of the table.
        unit: such as ``%``, ``s`` or ``bytes``; empty for a plain number.
        optional: a value of another type than ``real`` may be missing too.
        metric, measure: set for a score: what it is a score of (``efficacy``) and how that is
            measured (``success``). The headline, which repeats one of the measures under the
            metric's own name, has the measure ``headline``.
        stage: set for the seconds that a stage of a step took: the stage's name.
        shown: is part of the summary that ends a run; a number.
    """

    name: str
    type: ColumnType
    meaning: str
    unit: str = ""
    optional: bool = False
    metric: str = ""
    measure: str = ""
    stage: str = ""
    shown: bool = False


HEADLINE = "headline"


@dataclass(frozen=True)
class Table:
    """A table of a run: a folder of parquet files.

    Attributes:
        name: of the folder.
        meaning: what one row is.
        columns: in their order, those of the run apart, which every table has.
    """

    name: str
    meaning: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Declared:
    """What a probe adds to a run's tables.

    Attributes:
        step: columns of ``steps`` that are the step's own, the same in each of its scopes.
        scope: columns of ``steps`` with a value for each scope.
        layer: columns of ``layers``.
        tables: tables of the probe's own; ``step`` and ``edits`` come before their columns.
    """

    step: tuple[Column, ...] = ()
    scope: tuple[Column, ...] = ()
    layer: tuple[Column, ...] = ()
    tables: tuple[Table, ...] = field(default=())
