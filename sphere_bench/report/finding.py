"""Which runs a command line names."""

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sphere_bench.errors import SphereBenchError
from sphere_bench.report.reading import Run, read_run
from sphere_bench.run_folder.folder import RunFolder


class Found(NamedTuple):
    """The runs of some places.

    Attributes:
        runs: each once, in the order of their folders' names.
        passed_over: files and folders that are no run, or none yet, and why.
        damaged: why runs that are there cannot be read.
    """

    runs: list[Run]
    passed_over: list[str]
    damaged: list[str]


def find_runs(places: Iterable[str]) -> Found:
    """The runs that the places name.

    Args:
        places: run folders, folders of runs such as a multirun's, or patterns of either.

    Raises:
        SphereBenchError: a place does not exist, or no run is left.
    """
    folders: dict[Path, Path] = {}
    passed_over: dict[str, None] = {}
    for path in [path for place in places for path in _expand(place)]:
        inside = list(_folders(path))
        for folder in inside:
            if (reason := _why_no_run(folder)) is not None:
                passed_over[reason] = None
            else:
                folders.setdefault(folder.resolve(), folder)
    runs, damaged = [], []
    for folder in sorted(folders.values(), key=lambda each: each.name):
        try:
            runs.append(read_run(RunFolder(folder)))
        except SphereBenchError as error:
            damaged.append(str(error))
    if not runs:
        first, *others = [*damaged, *passed_over]
        more = f" (and {len(others)} more places without a readable run)" if others else ""
        raise SphereBenchError(f"{first}{more}: name folders that `sphere-bench run` wrote")
    return Found(runs, list(passed_over), damaged)


def _expand(place: str) -> list[Path]:
    if Path(place).exists():
        return [Path(place)]
    found = [Path(path) for path in sorted(glob.glob(place))]
    if not found:
        raise SphereBenchError(f"{place}: no such folder")
    return found


def _folders(path: Path) -> Iterator[Path]:
    """The folder itself, or what lies in it where that holds runs."""
    inside = sorted(path.iterdir()) if path.is_dir() else []
    if not _is_run(path) and any(_is_run(each) for each in inside):
        yield from inside
    else:
        yield path


def _is_run(folder: Path) -> bool:
    return RunFolder(folder).progress_file.is_file() and not folder.resolve().name.startswith(".")


def _why_no_run(path: Path) -> str | None:
    if _is_run(path):
        return None
    if RunFolder(path).config_file.is_file():
        return f"{path} has recorded no step yet"
    return f"{path} is no run and holds none"
