"""Run folders as the report sees them: nothing but files is read."""

import glob
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas
from omegaconf import OmegaConf

from sphere_bench.errors import SphereBenchError
from sphere_bench.recording import SCHEMAS, Progress, Table, read_progress, read_table
from sphere_bench.summary import incidents

CONFIG, PROGRESS, PROVENANCE = "config.yaml", "progress.json", "provenance.json"


@dataclass(frozen=True)
class Run:
    """One run's folder, finished or not.

    Attributes:
        folder: where it is.
        progress: how far it was when its folder was opened.
        config: dotted keys to values.
        provenance: where its numbers come from; empty where that was not written.
    """

    folder: Path
    progress: Progress
    config: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def state(self) -> str:
        """``done``, or how much of the run there is."""
        progress = self.progress
        if progress.state == "done":
            return "done"
        return f"{progress.state}: {progress.edits} of {progress.total} edits"

    @property
    def ended(self) -> bool:
        """Whether nothing more comes: it is done, or thresholds ended it."""
        return self.progress.state in ("done", "collapsed")

    @cached_property
    def incidents(self) -> list[str]:
        """What is to be known beside the numbers."""
        return incidents(self.progress, self.steps)

    @cached_property
    def steps(self) -> pandas.DataFrame:
        """The steps table, rows without evaluation included."""
        return read_table(self.folder, "steps")

    @cached_property
    def evaluated(self) -> pandas.DataFrame:
        """The rows of the steps table that somebody was evaluated for."""
        return self.steps[self.steps["records"] > 0]

    def scores(self, scope: str) -> pandas.DataFrame:
        """The rows of :attr:`evaluated` for one scope."""
        return self.evaluated[self.evaluated["scope"] == scope]

    @cached_property
    def layers(self) -> pandas.DataFrame:
        return read_table(self.folder, "layers")

    def layer(self, layer: int) -> pandas.DataFrame:
        """The rows of :attr:`layers` for one layer."""
        return self.layers[self.layers["layer"] == layer]

    @cached_property
    def cases(self) -> pandas.DataFrame:
        """Empty where no step was evaluated."""
        return self._if_recorded("cases")

    @cached_property
    def geometry(self) -> pandas.DataFrame:
        """Empty for a run of a version that did not record it."""
        return self._if_recorded("geometry")

    def portraits(self, layer: int) -> pandas.DataFrame:
        """The rows of :attr:`geometry` for one layer, the unedited weight's first."""
        return self.geometry[self.geometry["layer"] == layer]

    def _if_recorded(self, table: Table) -> pandas.DataFrame:
        if any((self.folder / table).glob("part-*.parquet")):
            return read_table(self.folder, table)
        return pandas.DataFrame(columns=SCHEMAS[table].names)


def find_runs(places: Iterable[str]) -> list[Run]:
    """The runs that the places name, each once, in the order of their folders' names.

    Args:
        places: run folders, folders of runs such as a multirun's, or patterns of either. In a
            folder of runs, those that have recorded nothing yet are passed over.

    Raises:
        SphereBenchError: a place is nothing of that kind, or a file of a run is damaged.
    """
    folders: dict[Path, Path] = {}
    for place in places:
        for path in _expand(place):
            for folder in _runs_in(path):
                folders.setdefault(folder.resolve(), folder)
    return [_read(folder) for folder in sorted(folders.values(), key=lambda each: each.name)]


def _expand(place: str) -> list[Path]:
    if Path(place).exists():
        return [Path(place)]
    found = [Path(path) for path in sorted(glob.glob(place))]
    if not found:
        raise SphereBenchError(f"{place}: no such folder")
    # A pattern also finds what lies beside the runs, such as a multirun's own file.
    return [path for path in found if path.is_dir()] or found


def _runs_in(path: Path) -> list[Path]:
    if (path / PROGRESS).is_file():
        return [path]
    if (path / CONFIG).is_file():
        raise SphereBenchError(f"{path} has recorded no step yet: wait for its first")
    inside = sorted(file.parent for file in path.glob(f"*/{PROGRESS}"))
    if not inside:
        raise SphereBenchError(
            f"{path} is no run and holds none: name folders that `sphere-bench run` wrote"
        )
    return inside


def _read(folder: Path) -> Run:
    progress = read_progress(folder)
    if progress is None:  # the run was started anew just now
        raise SphereBenchError(f"{folder} has recorded no step yet: wait for its first")
    try:
        nested = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
        config = pandas.json_normalize(nested).to_dict("records")[0]  # type: ignore[arg-type]
    except Exception as error:  # YAML's parser has errors of its own
        raise SphereBenchError(f"{folder / CONFIG} is missing or damaged") from error
    provenance: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        provenance = json.loads((folder / PROVENANCE).read_text("utf-8"))
    return Run(folder, progress, {str(key): value for key, value in config.items()}, provenance)
