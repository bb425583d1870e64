"""A disk that is full: one clear line, and a run that goes on once there is room."""

import errno
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.children import Death, Nursery
from tests.faults.conftest import Reference


def assert_told_in_one_line(end: Death) -> None:
    assert end.code == 2, end.output
    (line,) = [line for line in end.output.splitlines() if "error" in line]
    assert re.fullmatch(r"sphere-bench: error: .*: cannot write it .*: make room and run .*", line)
    assert "Traceback" not in end.output


@pytest.mark.parametrize("seed", range(3))
def test_from_a_seeded_change_on(
    nursery: Nursery, reference: Callable[[str], Reference], seed: int, tmp_path: Path
) -> None:
    whole = reference("memit")
    first = next(i for i, (_, path) in enumerate(whole.changes) if "config.yaml" in path.name)
    change = random.Random(seed).randrange(first, len(whole.changes) - 3)
    end = nursery.run(tmp_path, full_disk={"change": change, "code": errno.ENOSPC})
    assert_told_in_one_line(end)
    whole.assert_nothing_lost(tmp_path / "run")
    assert nursery.run_each([tmp_path]).code == 0
    whole.assert_completed(tmp_path / "run")


# The parquet files of a step are written by Arrow, a checkpoint's by safetensors.
@pytest.mark.parametrize("size, recorded", [(7000, -1), (100_000, 2)])
def test_where_libraries_of_other_languages_write(
    nursery: Nursery,
    reference: Callable[[str], Reference],
    size: int,
    recorded: int,
    tmp_path: Path,
) -> None:
    whole = reference("memit")
    assert_told_in_one_line(nursery.run(tmp_path, largest_file={"size": size}))
    assert whole.assert_nothing_lost(tmp_path / "run") == recorded
    assert nursery.run_each([tmp_path]).code == 0
    whole.assert_completed(tmp_path / "run")
