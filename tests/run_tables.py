"""Reading and comparing the tables of runs."""

from pathlib import Path

import pandas
from pandas.testing import assert_frame_equal

from sphere_bench.run_folder.folder import RunFolder

TABLES = ("steps", "layers", "cases", "geometry")


def table(folder: Path, name: str) -> pandas.DataFrame:
    return pandas.read_parquet(folder / name)


def without_times(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The columns that a run made again has the same values in."""
    changing = [name for name in frame if name.startswith(("seconds", "peak_"))]
    return frame.drop(columns=[*changing, "run"])


def assert_same_tables(folder: Path, other: Path) -> None:
    names = RunFolder(folder).table_names()
    assert names == RunFolder(other).table_names()
    assert set(names) >= set(TABLES)
    for name in names:
        assert_frame_equal(
            without_times(table(folder, name)), without_times(table(other, name)), check_exact=True
        )
