"""Results that others published, beside runs of the same setting."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import pandas
from omegaconf import OmegaConf

from sphere_bench.report.comparing import Arm, Setting
from sphere_bench.report.reading import column_of
from sphere_bench.report.tables import Column, Table, label, number, spread

_FILE = Path(__file__).with_name("published.yaml")
# Published scores are of all edits; the sample of them comes closest where all were not scored.
_SCOPES = ("all", "seen")


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table.

    Attributes:
        source: who published it.
        model, dataset, editor: by their names in the configuration.
        sphere: SPHERE was on.
        edits: when it was measured; None where that is not known.
        batch_size: edits in a step.
        measure: ``success`` or ``accuracy``.
        scores: metric to percent; what was not published is missing.
    """

    source: str
    model: str
    dataset: str
    editor: str
    sphere: bool
    edits: int | None
    batch_size: int
    measure: str
    scores: Mapping[str, float]


@cache
def published_rows() -> tuple[PublishedRow, ...]:
    """Every row of the file."""
    return tuple(
        PublishedRow(
            source=table["source"],
            model=table["model"],
            dataset=table["dataset"],
            editor=row["editor"],
            sphere=row["sphere"],
            edits=table["edits"],
            batch_size=table["batch_size"],
            measure=table["measure"],
            scores={key: row[key] for key in row if key not in ("editor", "sphere")},
        )
        for table in _content()["tables"]
        for row in table["rows"]
    )


def poster_gains() -> Mapping[str, float]:
    """Metric to what SPHERE's poster says that it gains on average, in points."""
    return cast(Mapping[str, float], _content()["poster"])


def published_table(setting: Setting) -> Table | None:
    """A row for each published one that some arm of the setting has measured too; None without any.

    The model, the dataset, the editor, whether SPHERE is on, and the batch size are the same, and
    the arm was scored after as many edits.
    """
    rows = []
    for arm in setting.arms:
        for published in published_rows():
            if _is_of(published, setting, arm):
                rows += list(_beside(published, arm))
    if not rows:
        return None
    frame = pandas.DataFrame(rows)
    metrics = [each for each in setting.metrics if f"{each}_published" in frame]
    columns = [
        label("Editor", "editor"),
        label("SPHERE", "variant"),
        number("Edits", "edits", 0),
        label("Measure", "measure"),
        *(column for metric in metrics for column in _columns(metric)),
        label("Runs’ scope", "scope"),
        label("Published by", "source"),
    ]
    caption = "Published numbers, not measured here, beside those of these runs, %"
    return Table("published", caption, frame, columns)


def _is_of(published: PublishedRow, setting: Setting, arm: Arm) -> bool:
    return (
        (published.model, published.dataset) == (setting.model, setting.dataset)
        and (published.editor, published.sphere) == (arm.editor, arm.enabled)
        and published.batch_size == arm.runs[0].progress.batch_size
    )


def _beside(published: PublishedRow, arm: Arm) -> Iterator[dict[str, Any]]:
    """Nothing, or the row: mean and deviation over the runs scored after as many edits."""
    for scope in _SCOPES:
        scores = pandas.concat([run.scores(scope, published.measure) for run in arm.runs])
        here = scores[scores["edits"] == published.edits]
        if len(here):
            row: dict[str, Any] = {
                "editor": arm.editor,
                "variant": arm.variant,
                "edits": published.edits,
                "measure": published.measure,
                "scope": scope,
                "source": published.source,
            }
            for metric, value in published.scores.items():
                measured = column_of(here, metric)
                row[f"{metric}_published"] = value
                row |= {f"{metric}_here": measured.mean(), f"{metric}_here_std": measured.std()}
            yield row
            return


def _columns(metric: str) -> list[Column]:
    group = metric.capitalize()
    return [
        number("published", f"{metric}_published", 2, group=group),
        spread("here", f"{metric}_here", 2, group=group),
    ]


@cache
def _content() -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(_FILE)))
