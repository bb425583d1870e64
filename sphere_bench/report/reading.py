"""One run as the report sees it: nothing but its files is read."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pandas
from omegaconf import OmegaConf

from sphere_bench.config.identity import changed, flatten
from sphere_bench.errors import SphereBenchError
from sphere_bench.report import earlier_version
from sphere_bench.report.declarations import Declarations, is_plain_name, read_declarations, unique
from sphere_bench.run_folder.folder import Progress, RunFolder
from sphere_bench.run_folder.summary import incidents
from sphere_bench.run_folder.table_files import ReadTable, read_parts


@dataclass(frozen=True)
class Run:
    """One run's folder, finished or not.

    Attributes:
        folder: where it is.
        progress: how far it was when its folder was opened.
        config: dotted keys to values, as the run recorded them.
        edited: what ``config.yaml`` says otherwise by now, old -> new.
        provenance: where its numbers come from; empty where that cannot be read.
        declared: what its tables hold.
    """

    folder: RunFolder
    progress: Progress
    config: dict[str, Any]
    edited: Sequence[str]
    provenance: dict[str, Any]
    declared: Declarations
    _tables: dict[str, ReadTable] = field(default_factory=dict, repr=False, compare=False)

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
    def headline(self) -> str:
        """The measure that is shown first, such as ``success``."""
        recorded = self.provenance.get("headline")
        return str(recorded) if recorded else earlier_version.headline(self.steps)

    @cached_property
    def incidents(self) -> list[str]:
        """What a reader must know beside the numbers."""
        return [*self.problems, *incidents(self.progress, self.steps)]

    @cached_property
    def problems(self) -> list[str]:
        """What of the run's files is damaged, missing or edited, and therefore left out."""
        problems = []
        if self.edited:
            problems.append(
                f"{self.folder.config_file.name} was edited by hand after the run had recorded its "
                f"configuration, which counts here ({'; '.join(self.edited)})"
            )
        if not self.provenance:
            file = self.folder.provenance_file.name
            problems.append(f"{file} is missing or damaged: the usual columns are read")
        for name in self.declared.tables:
            damaged = self._table(name).damaged
            problems += [f"{name}/{file.name} is damaged and left out" for file in damaged]
            lost = self.progress.rows.get(name, 0) - len(self.table(name))
            if gaps := self._expected_steps(name) - set(self.table(name).get("step", ())):
                problems.append(f"{name} has no rows of steps {_write_steps(gaps)}")
            elif lost > 0:
                problems.append(f"{name} lacks {lost} of {self.progress.rows[name]} rows")
        return problems

    def table(self, name: str) -> pandas.DataFrame:
        """A table's rows as far as they can be read; without any column where there are none."""
        return self._table(name).rows

    @property
    def steps(self) -> pandas.DataFrame:
        """The steps table, rows without evaluation included."""
        return self.table("steps")

    @property
    def layers(self) -> pandas.DataFrame:
        return self.table("layers")

    @property
    def cases(self) -> pandas.DataFrame:
        return self.table("cases")

    @property
    def geometry(self) -> pandas.DataFrame:
        return self.table("geometry")

    @cached_property
    def scopes(self) -> list[str]:
        """Those with a score."""
        scored = self.steps.reindex(columns=[column.name for column in self.declared.scores])
        scopes = self.steps.loc[scored.notna().any(axis=1), "scope"]
        return [scope for scope in unique(map(str, scopes)) if is_plain_name(scope)]

    def scores(self, scope: str, measure: str) -> pandas.DataFrame:
        """The rows of one scope that have a score of one measure.

        Returns:
            Columns ``step``, ``edits`` and one for each metric that has the measure.
        """
        metrics = self.declared.scores_of(measure)
        columns = {column.name: metric for metric, column in metrics.items()}
        rows = self.steps[self.steps["scope"] == scope]
        found = rows.reindex(columns=["step", "edits", *columns]).rename(columns=columns)
        scored: pandas.DataFrame = found[found[list(metrics)].notna().any(axis=1)]
        return scored

    def step_values(self, column: str, by: str = "step") -> "pandas.Series[float]":
        """A step's own column of the steps table, by ``step`` or ``edits``.

        Steps without a value are left out: whatever measures it had no turn there.
        """
        return column_of(self.steps.drop_duplicates("step").set_index(by), column).dropna()

    def layer_values(self, layer: int, column: str, by: str = "step") -> "pandas.Series[float]":
        """The same of one layer and a column of the layers table."""
        if "layer" not in self.layers:
            return pandas.Series(dtype=float)
        rows = self.layers[self.layers["layer"] == layer].set_index(by)
        return column_of(rows, column).dropna()

    def portraits(self, layer: int) -> pandas.DataFrame:
        """The rows of :attr:`geometry` for one layer, the unedited weight's first."""
        if "layer" not in self.geometry:
            return self.geometry
        rows: pandas.DataFrame = self.geometry[self.geometry["layer"] == layer]
        return rows

    def _table(self, name: str) -> ReadTable:
        if name not in self._tables:
            self._tables[name] = read_parts(self.folder, name, self.progress.step)
        return self._tables[name]

    def _expected_steps(self, table: str) -> set[int]:
        """The steps of which a table must have rows."""
        if self.declared.is_per_step(table):
            return set(range(self.progress.step + 1))
        # A table of single prompts has rows wherever the mean over them is in the steps table.
        if {"scope", self.headline} <= set(self.table(table)):
            return {
                int(s) for scope in self.scopes for s in self.scores(scope, self.headline)["step"]
            }
        return set()


def read_run(folder: RunFolder) -> Run:
    """The run in a folder.

    Raises:
        SphereBenchError: it has recorded nothing yet, or what it cannot be read without is damaged.
    """
    progress, state = folder.progress(), folder.state()
    if progress is None or state is None:
        raise SphereBenchError(f"{folder} has recorded no step yet")
    progress = replace(progress, state=state)
    provenance = _read_provenance(folder)
    declared = read_declarations(provenance) or earlier_version.DECLARATIONS
    written = _read_config(folder)
    config = _recorded_config(provenance) or written
    run = Run(folder, progress, config, changed(config, written), provenance, declared)
    if run.steps.empty:
        raise SphereBenchError(f"{folder} has no steps that can be read")
    return run


def column_of(table: pandas.DataFrame, name: str) -> "pandas.Series[float]":
    """A column of numbers; all NaN where the table lacks it."""
    column: pandas.Series[float] = table.reindex(columns=[name])[name].astype(float)
    return column


def _read_config(folder: RunFolder) -> dict[str, Any]:
    file = folder.config_file
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
    except Exception as error:  # YAML's parser has errors of its own
        raise SphereBenchError(f"{file} is missing or damaged") from error
    if not isinstance(content, dict):
        raise SphereBenchError(f"{file} is damaged")
    return flatten({str(key): value for key, value in content.items()})


def _recorded_config(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that the run recorded beside its numbers; empty where there is none."""
    recorded = provenance.get("config")
    return flatten(recorded) if isinstance(recorded, dict) else {}


def _read_provenance(folder: RunFolder) -> dict[str, Any]:
    try:
        content = json.loads(folder.provenance_file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_steps(steps: Iterable[int]) -> str:
    """``1, 3 to 5``: rising numbers, runs of them as ranges."""
    spans: list[list[int]] = []
    for step in sorted(steps):
        if spans and step == spans[-1][1] + 1:
            spans[-1][1] = step
        else:
            spans.append([step, step])
    return ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in spans)
