"""What the runs cost: where the time went, as a table and as a figure."""

import math
from itertools import cycle

import numpy as np
import pandas

from sphere_bench.report.comparing import Setting
from sphere_bench.report.drawing import Drawing, legend, panels, style
from sphere_bench.report.reading import Run
from sphere_bench.report.tables import Table, label, number, spread

_COLORS = (
    "#0072b2", "#cc79a7", "#d55e00", "#009e73", "#8b939e", "#b07800", "#6a51a3", "#8c564b"
)  # fmt: skip

_SECONDS = "seconds_"


def time_table(setting: Setting) -> Table:
    """Seconds an edit by stage over the whole run so far, and the largest memory."""
    rows = []
    for arm in setting.arms:
        costs = pandas.DataFrame([costs_of(run) for run in arm.runs])
        rows.append(
            {
                "editor": arm.editor,
                "variant": arm.variant,
                **costs.mean().to_dict(),
                **costs.std().add_suffix("_std").to_dict(),
                **_shares(costs.mean()),
            }
        )
    shares = [f"share_{stage}" for stage in setting.stages]
    columns = [
        label("Editor", "editor"),
        label("SPHERE", "variant"),
        spread("Seconds an edit", "total", 3),
        *(
            number(stage, share, group="Share of the time, %")
            for stage, share in zip(setting.stages, shares, strict=True)
        ),
        number("Peak memory, GiB", "peak_memory_gib", 2),
    ]
    frame = pandas.DataFrame(rows)
    missing = {share: math.nan for share in shares if share not in frame}
    return Table("time", "Where the time went", frame.assign(**missing), columns)


def time_figure(setting: Setting, table: Table) -> Drawing:
    """Seconds an edit by stage, from :func:`time_table`."""
    rows = table.rows
    with style():
        figure, ((axes,),) = panels(1, 1, 0.6 + 0.24 * len(rows))
        left = np.zeros(len(rows))
        for stage, color in zip(setting.stages, cycle(_COLORS), strict=False):
            seconds = (rows["total"] * rows[f"share_{stage}"] / 100).fillna(0).to_numpy()
            axes.barh(range(len(rows)), seconds, left=left, height=0.65, color=color, label=stage)
            left += seconds
        axes.set_yticks(range(len(rows)), rows["editor"] + " " + rows["variant"])
        axes.invert_yaxis()
        axes.set_xlabel("seconds an edit")
        axes.grid(axis="y", visible=False)
        legend(figure, axes)
    return Drawing(
        "time",
        "Where the time went, evaluation included.",
        "Stacked bars of the seconds that an edit took in each stage, for each editor with and "
        "without SPHERE; the numbers are in table time.",
        figure,
    )


def _shares(costs: "pandas.Series[float]") -> dict[str, float]:
    """Each stage's share of the mean time, in percent: not a mean of the runs' shares."""
    total = float(costs["total"]) or math.nan
    stages = [str(key) for key in costs.index if str(key).startswith(_SECONDS)]
    return {f"share_{key.removeprefix(_SECONDS)}": 100 * costs[key] / total for key in stages}


def costs_of(run: Run) -> dict[str, float]:
    """Seconds an edit, ``total`` and ``seconds_<stage>``, and ``peak_memory_gib``."""
    # A step's times are in each of its rows.
    once = run.steps.drop_duplicates("step")
    seconds = {
        stage: float(once[column].sum())
        for stage, column in run.declared.stages.items()
        if column in once
    }
    before = (once["step"] - 1) * run.progress.batch_size
    edits = (once["edits"] - before)[once["step"] > 0].sum()
    return {
        "total": sum(seconds.values()) / max(edits, 1),
        **{f"{_SECONDS}{stage}": value / max(edits, 1) for stage, value in seconds.items()},
        "peak_memory_gib": float(run.steps["peak_memory_bytes"].max()) / 2**30,
    }
