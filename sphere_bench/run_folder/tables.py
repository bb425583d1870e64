"""A run's tables on disk: parquet files of up to 32 steps, each complete or absent.

Each table is a folder of its own: ``pandas.read_parquet("results/<run>/steps")``.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import compute, parquet

from sphere_bench.evaluation.columns import Column, ColumnType, Table
from sphere_bench.files import atomic_file, remove_partial
from sphere_bench.run_folder.folder import Progress, RunFolder
from sphere_bench.run_folder.table_files import (
    STEPS_A_PART,
    count_rows,
    first_step_of_part,
    read_part,
    remove_damaged,
)

Row = Mapping[str, Any]

#: Columns of every table, which name its run.
OF_RUN = (
    Column("run", "text", "name of the run's folder"),
    Column("editor", "text", "the editor's name"),
    Column("sphere", "text", "name of the SPHERE setting; off without it"),
    Column("alpha", "real", "SPHERE's suppression strength; empty without it"),
    Column("model", "text", "the model's name"),
    Column("dataset", "text", "the dataset's name"),
    Column("seed", "whole", "the run's seed"),
)

_TYPES: dict[ColumnType, pyarrow.DataType] = {
    "whole": pyarrow.int64(),
    "real": pyarrow.float64(),
    "text": pyarrow.string(),
    "truth": pyarrow.bool_(),
    "wholes": pyarrow.list_(pyarrow.int64()),
    "reals": pyarrow.list_(pyarrow.float64()),
}


class Recorder:
    """Writes a run's tables and its progress.

    Args:
        folder: the run's folder, made where it is missing.
        tables: the run's tables; a step counts as recorded once its rows of `steps` are there.
        run: the values of the columns ``OF_RUN``.
    """

    def __init__(self, folder: RunFolder, tables: Sequence[Table], run: Row) -> None:
        self.folder = folder
        self.run = run
        # `steps` is written last.
        ordered = sorted(tables, key=lambda table: table.name == "steps")
        self.schemas = {table.name: _schema(table) for table in ordered}
        folder.path.mkdir(parents=True, exist_ok=True)
        remove_partial(folder.path)
        for name in self.schemas:
            folder.table(name).mkdir(exist_ok=True)
            remove_partial(folder.table(name))
            remove_damaged(folder, name)
        self._rows = {name: count_rows(folder, name) for name in self.schemas}

    @property
    def rows(self) -> dict[str, int]:
        """Table to the number of its rows on disk."""
        return dict(self._rows)

    def commit_step(self, step: int, rows: Mapping[str, Sequence[Row]], progress: Progress) -> None:
        """Put a step's rows and then the progress on disk.

        All files are written under temporary names before the first takes its own, `steps` last.
        Rows of a step that is made again replace its earlier ones.

        Raises:
            ValueError: a row lacks a column of its table, has another, or has a value of the
                wrong type or step.
        """
        made = {
            name: _to_table(name, schema, step, [{**self.run, **row} for row in rows.get(name, ())])
            for name, schema in self.schemas.items()
        }
        added: dict[str, int] = {}
        with ExitStack() as stack:
            # The stack unwinds backwards: what is entered last takes its name first.
            for name, table in reversed(made.items()):
                earlier = self._part(name, step)
                if table.num_rows or earlier is not None:
                    added[name] = self._write(stack, name, step, table, earlier)
        # Only now do the files have their names.
        for name, rows_more in added.items():
            self._rows[name] += rows_more
        self.write_progress(progress)

    def write_progress(self, progress: Progress) -> None:
        """Replace ``progress.json``; the number of rows is filled in."""
        self.folder.write_progress(replace(progress, rows=self.rows))

    def rewind(self, step: int) -> None:
        """Remove all rows of later steps than ``step``: the run goes on from there.

        With -1 nothing is left.
        """
        if step < 0:
            self.folder.progress_file.unlink(missing_ok=True)
        for name in reversed(self.schemas):
            for first, part in self.folder.parts(name).items():
                if first > step:
                    part.unlink()
                elif first + STEPS_A_PART > step + 1:
                    table = read_part(part)
                    kept = table.filter(compute.less_equal(table["step"], step))
                    if kept.num_rows < table.num_rows:
                        with atomic_file(part) as temporary:
                            _write(kept, temporary)
            self._rows[name] = count_rows(self.folder, name)

    def _part(self, name: str, step: int) -> pyarrow.Table | None:
        """What the part that ``step`` belongs to holds already."""
        part = self.folder.part(name, first_step_of_part(step))
        return read_part(part) if part.exists() else None

    def _write(
        self,
        stack: ExitStack,
        name: str,
        step: int,
        table: pyarrow.Table,
        earlier: pyarrow.Table | None,
    ) -> int:
        """Write the part of ``step`` anew; returns by how many rows it grows."""
        before = 0 if earlier is None else earlier.num_rows
        if earlier is not None:
            past = earlier.filter(compute.less(earlier["step"], step))
            later = earlier.filter(compute.greater(earlier["step"], step))
            table = pyarrow.concat_tables([past, table, later]).unify_dictionaries()
        part = self.folder.part(name, first_step_of_part(step))
        _write(table, stack.enter_context(atomic_file(part)))
        return int(table.num_rows - before)


def _schema(table: Table) -> pyarrow.Schema:
    fields = []
    for column in (*OF_RUN, *table.columns):
        kind = _TYPES[column.type]
        if column in OF_RUN and column.type == "text":
            kind = pyarrow.dictionary(pyarrow.int32(), kind)
        # A real number that does not exist (no such prompt, a diverged model) is null, which
        # pandas reads as NaN.
        nullable = column.optional or column.type == "real"
        fields.append(pyarrow.field(column.name, kind, nullable=nullable))
    return pyarrow.schema(fields)


def _to_table(name: str, schema: pyarrow.Schema, step: int, rows: Sequence[Row]) -> pyarrow.Table:
    for row in rows:
        if set(row) != set(schema.names):
            raise ValueError(
                f"a row of {name} lacks {sorted(set(schema.names) - set(row))} and has "
                f"{sorted(set(row) - set(schema.names))} too many"
            )
        if row["step"] != step:
            raise ValueError(f"a row of {name} is of step {row['step']}, not {step}")
    columns = []
    for field in schema:
        values = [row[field.name] for row in rows]
        coded = pyarrow.types.is_dictionary(field.type)
        try:
            kind = field.type.value_type if coded else field.type
            column = pyarrow.array(values, kind, from_pandas=True)
        except (pyarrow.ArrowException, OverflowError) as error:
            raise ValueError(f"column {field.name} of {name}: {error}") from error
        if column.null_count and not field.nullable:
            raise ValueError(f"column {field.name} of {name} must not be null")
        columns.append(column.dictionary_encode() if coded else column)
    return pyarrow.Table.from_arrays(columns, schema=schema)


def _write(table: pyarrow.Table, file: Path) -> None:
    parquet.write_table(table, file, compression="zstd")
