"""The parquet files of a run's tables: which rows are there, and which are gone or damaged."""

from dataclasses import dataclass
from pathlib import Path

import pandas
import pyarrow
from pyarrow import parquet

from sphere_bench.errors import SphereBenchError
from sphere_bench.run_folder.folder import RunFolder

#: A file holds the rows of so many steps.
STEPS_A_PART = 32


@dataclass(frozen=True)
class ReadTable:
    """The rows that were read, and which files could not be.

    Attributes:
        rows: in the order of the files; without any column where nothing could be read.
        damaged: the files that are left out.
    """

    rows: pandas.DataFrame
    damaged: list[Path]


def first_step_of_part(step: int) -> int:
    """The first step of the file that ``step`` belongs to."""
    return step // STEPS_A_PART * STEPS_A_PART


def read_part(part: Path) -> pyarrow.Table:
    """The rows of one file."""
    # Read by itself: a folder named like `key=value` would add a column.
    return parquet.ParquetFile(part).read()


def read_parts(folder: RunFolder, table: str, last_step: int) -> ReadTable:
    """The rows up to a step, of every file of a table that can be read.

    Args:
        folder: the run's.
        table: which; it need not exist.
        last_step: the last step that counts as recorded. Later ones were being written when the
            run was killed.
    """
    frames, damaged = [], []
    for part in folder.parts(table).values():
        try:
            frame = read_part(part).to_pandas()
            frames.append(frame[frame["step"] <= last_step])
        except (pyarrow.ArrowException, OSError, KeyError):
            damaged.append(part)
    # Files without rows would only blur the types of the columns.
    filled = [frame for frame in frames if len(frame)] or frames[:1]
    rows = pandas.concat(filled, ignore_index=True) if filled else pandas.DataFrame()
    return ReadTable(rows, damaged)


def read_table(folder: RunFolder, table: str) -> pandas.DataFrame:
    """One table of a run.

    Args:
        folder: the run's.
        table: which.

    Raises:
        SphereBenchError: the folder holds no such table, or a file of it is damaged.
    """
    progress = folder.progress()
    if progress is None or not folder.parts(table):
        raise SphereBenchError(f"{folder} holds no {table} of a run: name a run's own folder")
    found = read_parts(folder, table, progress.step)
    if found.damaged:
        raise SphereBenchError(
            f"{found.damaged[0]} is damaged: delete it and run the same command again, which makes "
            "its steps again"
        )
    return found.rows


def first_gap(folder: RunFolder) -> int | None:
    """The first step that some table may lack rows of, by the counts in ``progress.json``.

    Files are gone, or cannot be read; ``None`` where everything is there.
    """
    progress = folder.progress()
    if progress is None:
        return None
    gaps = []
    for name, expected in progress.rows.items():
        if count_rows(folder, name) >= expected:
            continue
        parts = folder.parts(name)
        lost = [
            first
            for first in range(0, progress.step + 1, STEPS_A_PART)
            if first not in parts or not _is_whole(parts[first])
        ]
        # Rows that are missing from whole files can only be the last ones.
        gaps.append(min(lost, default=first_step_of_part(progress.step)))
    return min(gaps, default=None)


def remove_damaged(folder: RunFolder, table: str) -> None:
    """Delete the files of a table that cannot be read."""
    for part in folder.parts(table).values():
        if not _is_whole(part):
            part.unlink()


def count_rows(folder: RunFolder, table: str) -> int:
    """Rows on disk, by the files' own footers; a file that cannot be read has none."""
    parts = folder.parts(table).values()
    return sum(parquet.read_metadata(part).num_rows for part in parts if _is_whole(part))


def _is_whole(part: Path) -> bool:
    try:
        parquet.read_metadata(part)
    except (pyarrow.ArrowException, OSError):
        return False
    return True
