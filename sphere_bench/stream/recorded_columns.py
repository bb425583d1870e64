"""The tables of a run: what the stream itself records, and what the probes add to it."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from sphere_bench.editing.stages import STAGES
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.columns import Column, Declared, Table
from sphere_bench.run_folder.tables import OF_RUN

STEPS, LAYERS = "steps", "layers"

#: What a column has one value for: a step, a scope of it, an edited layer, or a row of its table.
Per = Literal["step", "scope", "layer", "row"]

POSITION = (
    Column("step", "whole", "batches edited so far; 0 is the unedited model"),
    Column("edits", "whole", "records edited so far"),
)
SCOPE = (
    Column("scope", "text", "records that scores are means over: batch, seen, first or all"),
    Column("records", "whole", "records of the scope; 0 where no record is looked at"),
    Column(
        "superseded",
        "whole",
        "those whose fact a later edit has given another target: left out of the means by default",
    ),
)
EVENTS = (
    Column("nonfinite", "truth", "a number was not finite, or an update was too large"),
    Column("skipped", "truth", "the batch was left out"),
    Column("collapsed", "truth", "the thresholds of collapse were passed"),
)
MEMORY = Column(
    "peak_memory_bytes",
    "whole",
    "largest memory so far: of the CUDA device, else of the process",
    "bytes",
    optional=True,
)
LAYER = Column("layer", "whole", "the edited layer")
UPDATE = (
    Column("update_norm", "real", "norm of the update that the editor proposed"),
    Column("applied_norm", "real", "norm of the deployed weight's change"),
    Column("rank", "whole", "principal directions that SPHERE suppressed", optional=True),
    Column("residual_norm", "real", "mean of ||z - hidden state|| before the layer's write"),
)


class DeclaredBy(NamedTuple):
    """What a probe declares, and who it is.

    Attributes:
        name: of the probe in the configuration.
        stage: that its seconds are added to.
        declared: its columns and tables.
    """

    name: str
    stage: str
    declared: Declared


@dataclass(frozen=True)
class Placed:
    """A column in its table."""

    table: str
    per: Per
    column: Column


@dataclass(frozen=True)
class RunTables:
    """All tables of a run with the given probes.

    Args:
        probes: what they declare, in their order.
    """

    probes: Sequence[DeclaredBy]

    def check(self) -> None:
        """Make sure that no name is declared twice.

        Raises:
            SphereBenchError: a probe has a column or table that is there already.
        """
        seen = {(table.name, column.name) for table in self.tables for column in OF_RUN}
        own = {table.name for each in self.probes for table in each.declared.tables}
        tables = [table.name for each in self.probes for table in each.declared.tables]
        for name in tables:
            if name in (STEPS, LAYERS) or tables.count(name) > 1:
                raise SphereBenchError(f"the table {name} is declared twice: rename the probe's")
        for placed in self.columns:
            key = (placed.table, placed.column.name)
            if key in seen:
                raise SphereBenchError(
                    f"the column {placed.column.name} of {placed.table} is declared twice"
                    + ("" if placed.table in own else ": rename the probe's")
                )
            seen.add(key)
            if placed.column.shown and placed.column.type not in ("real", "whole"):
                raise SphereBenchError(
                    f"the column {placed.column.name} of {placed.table} is shown, but is no "
                    "number: leave `shown` out"
                )

    @cached_property
    def stages(self) -> list[str]:
        """The stages of a step: the editor's, then the probes'."""
        return list(dict.fromkeys([*STAGES, *(each.stage for each in self.probes)]))

    @cached_property
    def columns(self) -> list[Placed]:
        """Every column of every table, those of the run apart, each declared once."""
        return list(self._columns())

    @cached_property
    def tables(self) -> list[Table]:
        """The tables, `steps` and `layers` first."""
        meanings = {
            STEPS: "one row for each step and scope",
            LAYERS: "one row for each step and edited layer",
            **{table.name: table.meaning for each in self.probes for table in each.declared.tables},
        }
        return [
            Table(
                name,
                meaning,
                tuple(placed.column for placed in self.columns if placed.table == name),
            )
            for name, meaning in meanings.items()
        ]

    def described(self) -> list[dict[str, Any]]:
        """The columns as plain values, for ``provenance.json``."""
        return [
            {"table": placed.table, "per": placed.per, **asdict(placed.column)}
            for placed in self.columns
        ]

    def _columns(self) -> Iterator[Placed]:
        declared = [each.declared for each in self.probes]
        for column in POSITION:
            yield Placed(STEPS, "step", column)
        for column in SCOPE:
            yield Placed(STEPS, "scope", column)
        for each in declared:
            yield from (Placed(STEPS, "scope", column) for column in each.scope)
        for each in declared:
            yield from (Placed(STEPS, "step", column) for column in each.step)
        for stage in self.stages:
            yield Placed(STEPS, "step", _seconds(stage))
        for column in (MEMORY, *EVENTS):
            yield Placed(STEPS, "step", column)
        for column in (*POSITION, LAYER):
            yield Placed(LAYERS, "layer", column)
        for each in declared:
            yield from (Placed(LAYERS, "layer", column) for column in each.layer)
        for column in UPDATE:
            yield Placed(LAYERS, "layer", column)
        for each in declared:
            for table in each.tables:
                for column in (*POSITION, *table.columns):
                    yield Placed(table.name, "row", column)


def _seconds(stage: str) -> Column:
    return Column(f"seconds_{stage}", "real", f"time of the stage {stage}", "s", stage=stage)
