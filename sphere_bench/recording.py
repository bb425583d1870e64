"""A run's tables and its progress: a parquet part a step, complete or absent.

Each table is a folder of its own: ``pandas.read_parquet("results/<run>/steps")``.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

import pandas
import pyarrow
from pyarrow import parquet

from sphere_bench.data.records import HEADLINES
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.metrics import METRICS
from sphere_bench.files import atomic_file, remove_partial, write_json

Table = Literal["cases", "geometry", "layers", "steps"]
State = Literal["running", "done", "interrupted", "collapsed"]
Row = Mapping[str, Any]

_WHOLE, _TEXT, _REAL = pyarrow.int64(), pyarrow.string(), pyarrow.float64()
_TRUTH = pyarrow.bool_()


def _field(name: str, type_: pyarrow.DataType, nullable: bool = False) -> pyarrow.Field:
    # A real number that does not exist (no prompt of that kind, a diverged model) is null, which
    # pandas reads as NaN.
    return pyarrow.field(name, type_, nullable=nullable or type_ == _REAL)


def _reals(*names: str) -> list[pyarrow.Field]:
    return [_field(name, _REAL) for name in names]


STAGES = ("values", "keys", "update", "transform", "evaluate", "energy")

SCHEMAS: dict[Table, pyarrow.Schema] = {
    "steps": pyarrow.schema(
        [
            _field("step", _WHOLE),
            _field("edits", _WHOLE),
            _field("scope", _TEXT),
            _field("records", _WHOLE),
            *_reals(*METRICS),
            *_reals(*(f"{name}_{kind}" for name in METRICS for kind in HEADLINES)),
            *_reals("he", "he_ratio"),
            *_reals(*(f"seconds_{stage}" for stage in STAGES)),
            _field("peak_memory_bytes", _WHOLE, nullable=True),
            *_reals("perplexity"),
            *(_field(name, _TRUTH) for name in ("nonfinite", "skipped", "collapsed")),
        ]
    ),
    "layers": pyarrow.schema(
        [
            _field("step", _WHOLE),
            _field("edits", _WHOLE),
            _field("layer", _WHOLE),
            *_reals("he", "he_normalized", "he_ratio"),
            *_reals("weight_norm", "update_norm", "applied_norm"),
            _field("rank", _WHOLE, nullable=True),
            *_reals("drift", "cos_mean", "cos_std", "cos_p01", "cos_p99", "residual_norm"),
        ]
    ),
    "geometry": pyarrow.schema(
        [
            _field("step", _WHOLE),
            _field("edits", _WHOLE),
            _field("layer", _WHOLE),
            _field("cosine_counts", pyarrow.list_(_WHOLE)),
            _field("neurons", pyarrow.list_(_WHOLE)),
            _field("plane_x", pyarrow.list_(_REAL)),
            _field("plane_y", pyarrow.list_(_REAL)),
        ]
    ),
    "cases": pyarrow.schema(
        [
            _field("step", _WHOLE),
            _field("edits", _WHOLE),
            _field("scope", _TEXT),
            _field("case_id", _TEXT),
            _field("edited_at", _WHOLE),
            _field("kind", _TEXT),
            _field("prompt_index", _WHOLE),
            *_reals("nll_new", "nll_true", "success", "accuracy"),
        ]
    ),
}

# A step counts as recorded once its part of the last table is there.
_WRITE_ORDER: tuple[Table, ...] = get_args(Table)


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: the last step whose rows are on disk.
        edits: edits made by then.
        total: edits of the whole run.
        batch_size: edits in a step.
        state: ``running`` also stands for a process that was killed; ``collapsed`` for a run that
            ended before its last step.
    """

    step: int
    edits: int
    total: int
    batch_size: int
    state: State


class Recorder:
    """Writes a run's tables and ``progress.json``.

    Args:
        folder: the run's folder, made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial(folder)
        for table in _WRITE_ORDER:
            (folder / table).mkdir(exist_ok=True)
            remove_partial(folder / table)

    def commit_step(
        self,
        step: int,
        *,
        steps: Sequence[Row],
        layers: Sequence[Row],
        cases: Sequence[Row],
        geometry: Sequence[Row] = (),
        progress: Progress,
    ) -> None:
        """Put a step's rows and then the progress on the disk; a table without rows gets no part.

        All parts are written under temporary names before the first takes its own, `steps` last.
        Those of a step that is made again replace its earlier ones.

        Raises:
            ValueError: a row lacks a column of its table, has another, or has a value of the
                wrong type or step.
        """
        rows = {"cases": cases, "geometry": geometry, "layers": layers, "steps": steps}
        tables = {name: _to_table(name, step, rows[name]) for name in _WRITE_ORDER if rows[name]}
        with ExitStack() as stack:
            # The stack unwinds backwards: what is entered last takes its name first.
            for name, table in reversed(tables.items()):
                part = stack.enter_context(atomic_file(self._part(name, step)))
                parquet.write_table(table, part, compression="zstd")
        self.write_progress(progress)

    def write_progress(self, progress: Progress) -> None:
        """Replace ``progress.json``."""
        updated_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        write_json(self._progress_file, {**asdict(progress), "updated_at": updated_at})

    def progress(self) -> Progress | None:
        """What ``progress.json`` says; ``None`` for a run that has recorded nothing yet.

        Raises:
            SphereBenchError: the file is damaged.
        """
        return read_progress(self.folder)

    def rewind(self, step: int) -> None:
        """Remove all rows of later steps than ``step``: the run goes on from there.

        With -1 nothing is left.
        """
        if step < 0:
            self._progress_file.unlink(missing_ok=True)
        for table in reversed(_WRITE_ORDER):
            for part in (self.folder / table).glob("part-*.parquet"):
                if int(part.stem.removeprefix("part-")) > step:
                    part.unlink()

    def _part(self, table: Table, step: int) -> Path:
        return self.folder / table / f"part-{step:05d}.parquet"

    @property
    def _progress_file(self) -> Path:
        return self.folder / "progress.json"


def read_progress(folder: Path) -> Progress | None:
    """See :meth:`Recorder.progress`."""
    file = folder / "progress.json"
    try:
        content = json.loads(file.read_text("utf-8"))
        content.pop("updated_at")
        return Progress(**content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SphereBenchError(
            f"{file} is damaged: delete it, and the run goes on from its latest checkpoint"
        ) from error


def read_table(folder: Path, table: Table) -> pandas.DataFrame:
    """One table of a run, without rows of a step that was being written when the run was killed.

    Args:
        folder: the run's folder.
        table: which.

    Raises:
        SphereBenchError: the folder holds no such table, or a part of it is damaged.
    """
    progress = read_progress(folder)
    parts = sorted((folder / table).glob("part-*.parquet"))
    if progress is None or not parts:
        raise SphereBenchError(f"{folder} holds no {table} of a run: name a run's own folder")
    frames = []
    for part in parts:
        try:
            frames.append(parquet.ParquetFile(part).read())
        except (pyarrow.ArrowException, OSError) as error:
            raise SphereBenchError(f"{part} is damaged: delete {folder} and run again") from error
    frame = pyarrow.concat_tables(frames).to_pandas()
    return frame[frame["step"] <= progress.step].reset_index(drop=True)


def _to_table(name: Table, step: int, rows: Sequence[Row]) -> pyarrow.Table:
    schema = SCHEMAS[name]
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
        try:
            column = pyarrow.array([row[field.name] for row in rows], field.type, from_pandas=True)
        except (pyarrow.ArrowException, OverflowError) as error:
            raise ValueError(f"column {field.name} of {name}: {error}") from error
        if column.null_count and not field.nullable:
            raise ValueError(f"column {field.name} of {name} must not be null")
        columns.append(column)
    return pyarrow.Table.from_arrays(columns, schema=schema)
