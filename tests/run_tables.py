"""Reading and comparing the tables of runs."""

from pathlib import Path

import pandas
from pandas.testing import assert_frame_equal

from sphere_bench.recording import SCHEMAS, Table


def table(folder: Path, name: Table) -> pandas.DataFrame:
    return pandas.read_parquet(folder / name)


def without_times(frame: pandas.DataFrame) -> pandas.DataFrame:
    changing = [name for name in frame if name.startswith("seconds_") or name.startswith("peak_")]
    return frame.drop(columns=changing)


def assert_same_tables(folder: Path, other: Path) -> None:
    for name in SCHEMAS:
        assert_frame_equal(
            without_times(table(folder, name)), without_times(table(other, name)), check_exact=True
        )
