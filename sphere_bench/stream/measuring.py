"""What is measured once a step is made: the probes that have their turn, and the tables' rows."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from sphere_bench.editing.batch import BatchReport, LayerReport
from sphere_bench.editing.state import check_state, restore_state, state_of
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.columns import Column
from sphere_bench.evaluation.probe import Findings, Moment, Probe
from sphere_bench.evaluation.scopes import Scopes
from sphere_bench.stream.recorded_columns import LAYERS, STEPS, UPDATE, DeclaredBy, RunTables

Row = dict[str, Any]


@dataclass(frozen=True)
class ScheduledProbe:
    """A probe and its cadence.

    Attributes:
        name: in the configuration.
        probe: the probe.
        every: steps between its turns, at least 1.
    """

    name: str
    probe: Probe
    every: int

    @property
    def stage(self) -> str:
        """The stage that its seconds are added to."""
        return str(getattr(self.probe, "stage", self.name))

    def measure(self, moment: Moment) -> Findings:
        """What the probe finds.

        Raises:
            SphereBenchError: it gives a column or a table that it does not declare.
        """
        found, declared = self.probe.measure(moment), self.probe.declares
        self._check("steps", found.step, declared.step)
        for row in found.scopes.values():
            self._check("steps", row, declared.scope)
        for row in found.layers.values():
            self._check("layers", row, declared.layer)
        columns = {table.name: table.columns for table in declared.tables}
        for name, rows in found.tables.items():
            for row in rows:
                self._check(name, row, columns.get(name, ()))
        return found

    def _check(self, table: str, row: Mapping[str, Any], columns: Iterable[Column]) -> None:
        unknown = sorted(row.keys() - {column.name for column in columns})
        if unknown:
            raise SphereBenchError(
                f"probes.{self.name} gives {', '.join(unknown)} for {table} without declaring it: "
                "add it to what the probe declares"
            )


@dataclass(frozen=True)
class MeasuredStep:
    """A step's rows.

    Attributes:
        tables: table to its rows; those of `steps` lack what the runner knows.
        evaluated: some probe looked at records.
    """

    tables: dict[str, list[Row]]
    evaluated: bool


class Measurer:
    """Gives each probe its turn and makes a step's rows of what they find.

    Args:
        probes: in the order in which they have their turns.
        scopes: the records that they look at.
        layers: the edited layers.

    Attributes:
        tables: of the run.
    """

    def __init__(
        self, probes: Sequence[ScheduledProbe], scopes: Scopes, layers: Sequence[int]
    ) -> None:
        self.probes = probes
        self.scopes = scopes
        self.layers = layers
        self.tables = RunTables(
            [DeclaredBy(each.name, each.stage, each.probe.declares) for each in probes]
        )
        self.tables.check()
        for each in probes:
            check_state(each.probe, f"probes.{each.name}")

    def is_provisional(self, records: int) -> bool:
        """Whether a run of more than ``records`` makes or measures their last step otherwise."""
        last = math.ceil(records / self.scopes.batch_size)
        partial = records % self.scopes.batch_size != 0
        return partial or not all(self._is_regular(each, last) for each in self.probes)

    def measure(self, step: int, report: BatchReport | None) -> MeasuredStep:
        """The rows of ``step``, on the model as it is now.

        Args:
            step: batches edited so far; 0 is the unedited model.
            report: of the step's batch; ``None`` for the unedited model.
        """
        due = [each for each in self.probes if self._is_due(each, step)]
        scopes = self.scopes
        moment = Moment(step, scopes.edits(step), scopes.batch_size, scopes.of(step))
        report = report or BatchReport()
        seconds = {stage: report.seconds.get(stage, 0.0) for stage in self.tables.stages}
        found = []
        for each in due:
            started = perf_counter()
            found.append(each.measure(moment))
            seconds[each.stage] += perf_counter() - started
        evaluated = any(each.probe.declares.scope for each in due)
        position = {"step": step, "edits": moment.edits}
        shared = {
            **_merged(each.step for each in found),
            **{f"seconds_{stage}": value for stage, value in seconds.items()},
            "nonfinite": report.nonfinite,
            "skipped": report.skipped,
        }
        members = scopes.members(step) if evaluated else {"batch": []}
        superseded = scopes.superseded(step)
        steps = [
            {
                **self._empty(STEPS),
                **shared,
                **_merged(each.scopes.get(scope, {}) for each in found),
                **position,
                "scope": scope,
                "records": len(indices),
                "superseded": len(superseded.intersection(indices)),
            }
            # After a step that no record is looked at, one row holds the step's own values.
            for scope, indices in members.items()
        ]
        layers = [
            {
                **self._empty(LAYERS),
                **_update(report.layers.get(layer, LayerReport())),
                **_merged(each.layers.get(layer, {}) for each in found),
                **position,
                "layer": layer,
            }
            for layer in self.layers
        ]
        own = {
            name: [{**position, **row} for row in rows]
            for each in found
            for name, rows in each.tables.items()
        }
        return MeasuredStep({**own, LAYERS: layers, STEPS: steps}, evaluated)

    def state_dict(self) -> dict[str, Any]:
        """What the probes remember."""
        return {each.name: state_of(each.probe) for each in self.probes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        for each in self.probes:
            restore_state(each.probe, state.get(each.name, {}))

    def _is_due(self, probe: ScheduledProbe, step: int) -> bool:
        """By its cadence, at milestones and at the last step."""
        last = self.scopes.edits(step) >= self.scopes.records
        return last or self._is_regular(probe, step)

    def _is_regular(self, probe: ScheduledProbe, step: int) -> bool:
        return step % probe.every == 0 or self.scopes.is_milestone(step)

    def _empty(self, table: str) -> Row:
        """A row whose columns are all missing."""
        return {placed.column.name: None for placed in self.tables.columns if placed.table == table}


def _update(report: LayerReport) -> Row:
    return {column.name: getattr(report, column.name) for column in UPDATE}


def _merged(rows: Iterable[Mapping[str, Any]]) -> Row:
    return {name: value for row in rows for name, value in row.items()}
