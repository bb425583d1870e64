"""What became of the weights: tables beside the scores."""

from collections.abc import Sequence
from dataclasses import replace

import pandas

from sphere_bench.report.comparing import Setting
from sphere_bench.report.reading import Run
from sphere_bench.report.score_tables import UNEDITED
from sphere_bench.report.tables import Table, label, spread

# Columns that are measured together: their last step is one at which any of them has a value.
_WRITTEN = ["update_norm", "applied_norm", "rank"]
_COSINES = ["cos_mean", "cos_std", "cos_p01", "cos_p99"]
_MEASURED = ["weight_norm", "drift", "he_ratio", *_COSINES]


def weight_table(setting: Setting) -> Table | None:
    """The edited weights at the last step; None where nothing of them was measured.

    Means over layers, then mean and deviation over runs.
    """
    rows = [{"editor": UNEDITED, "variant": "", **_weights(setting.runs, first=True)}]
    for arm in setting.arms:
        rows.append({"editor": arm.editor, "variant": arm.variant, **_weights(arm.runs)})
    columns = [
        label("Editor", "editor"),
        label("SPHERE", "variant"),
        spread("Weight norm", "weight_norm", 2),
        spread("proposed", "update_norm", 3, group="Update norm"),
        spread("applied", "applied_norm", 3, group="Update norm"),
        spread("Rank r", "rank"),
        spread("Drift, %", "drift", 2),
        spread("HE change, %", "he_change", 3),
    ]
    frame = pandas.DataFrame(rows)
    if frame[[*_WRITTEN, *_MEASURED]].isna().all(axis=None):
        return None
    caption = "The edited weights at the last step, means over edited layers"
    return Table("weights", caption, frame, columns, frozenset([0]))


def cosine_table(table: Table) -> Table | None:
    """The cosines between neurons, from :func:`weight_table`'s numbers; None without any."""
    if table.rows[_COSINES].isna().all(axis=None):
        return None
    headers = ["Mean", "Standard deviation", "1st percentile", "99th percentile"]
    columns = [
        *table.columns[:2],
        *(spread(header, key, 3) for header, key in zip(headers, _COSINES, strict=True)),
    ]
    caption = "Cosine similarity between neurons at the last step, means over edited layers"
    return replace(table, name="cosines", caption=caption, columns=columns)


def _weights(runs: Sequence[Run], first: bool = False) -> dict[str, float]:
    frame = pandas.DataFrame(
        [
            pandas.concat([_means(run, group, first) for group in (_WRITTEN, _MEASURED)])
            for run in runs
        ]
    )
    if first:  # nothing was proposed or applied yet
        frame[_WRITTEN] = float("nan")
    return {**frame.mean().to_dict(), **_deviations(frame).add_suffix("_std").to_dict()}


def _deviations(frame: pandas.DataFrame) -> "pandas.Series[float]":
    """Over runs; none of equal numbers, whose mean differs from them in the last bits."""
    equal = (frame.nunique() == 1) & (frame.count() > 1)
    return frame.std().mask(equal, 0.0)


def _means(run: Run, columns: list[str], first: bool) -> "pandas.Series[float]":
    """Means over layers at the first or last step at which one of the columns has a value."""
    layers = run.layers.reindex(columns=["step", *columns]).astype(float)
    layers = layers[layers[columns].notna().any(axis=1)]
    step = layers["step"].min() if first else layers["step"].max()
    means: pandas.Series[float] = layers.loc[layers["step"] == step, columns].mean()
    if "he_ratio" in means:
        means["drift"] *= 100
        means["he_change"] = 100 * (means["he_ratio"] - 1)
    return means
