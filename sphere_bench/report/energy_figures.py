"""Figures of the hyperspherical energy: over edits, against quality, and by lag."""

from itertools import cycle

import numpy as np
from matplotlib.ticker import MaxNLocator

from sphere_bench.report.comparing import Setting
from sphere_bench.report.correlation import LAGS, changes
from sphere_bench.report.correlation_tables import energy_and_quality
from sphere_bench.report.drawing import (
    INK,
    MUTED,
    SPHERE,
    Drawing,
    Look,
    draw_runs,
    layer_colors,
    legend,
    looks,
    panels,
    style,
)
from sphere_bench.report.tables import Table


def energy(setting: Setting) -> Drawing | None:
    """HE change of every edited layer over edits; None where it was not measured.

    A row for each editor, a column for each variant.
    """
    if not any(
        len(run.layer_values(each, "he_ratio")) for run in setting.runs for each in setting.layers
    ):
        return None
    with style():
        columns = len(setting.variants)
        figure, grid = panels(len(setting.editors), columns, 1.7, sharex="all", sharey="row")
        layers = setting.layers
        shades = layer_colors(layers)
        for editor, row in zip(setting.editors, grid, strict=True):
            arms = {arm.variant: arm for arm in setting.arms_of(editor)}
            for variant, axes in zip(setting.variants, row, strict=True):
                axes.axhline(0, color=MUTED, linestyle=":", linewidth=1.2)
                for layer in layers:
                    if variant in arms:
                        runs = [
                            run.layer_values(layer, "he_ratio", by="edits")
                            for run in arms[variant].runs
                        ]
                        changed = [100 * (series - 1) for series in runs if len(series)]
                        if changed:
                            draw_runs(axes, changed, Look(shades[layer], "-"))
            row[0].set_ylabel(editor, fontweight="bold")
        for variant, top, bottom in zip(setting.variants, grid[0], grid[-1], strict=True):
            top.set_title(variant)
            bottom.set_xlabel("edits")
            bottom.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        figure.supylabel("HE change, %", fontsize="medium")
        for layer in layers:
            grid[0][0].plot([], [], color=shades[layer], label=f"layer {layer}")
        legend(figure, grid[0][0])
    return Drawing(
        "energy",
        "Hyperspherical energy of each edited layer, as the change from the unedited weight. Lower "
        "is more uniform.",
        "Line charts of the change of hyperspherical energy over edits, a line for each of layers "
        f"{', '.join(map(str, layers))}, a panel for each of "
        f"{', '.join(arm.label for arm in setting.arms)}.",
        figure,
    )


def energy_against_quality(setting: Setting, scope: str) -> Drawing:
    """A point for each evaluated step: levels on the left, step-to-step changes on the right."""
    look, quality = looks(setting), f"{setting.overall} {setting.headline}"
    markers = dict(zip(setting.editors, cycle("osD^vPX<>*"), strict=False))
    with style():
        figure, (row,) = panels(1, 2, 3.2)
        for axes, of_changes in zip(row, (False, True), strict=True):
            for arm in setting.arms:
                for run in arm.runs:
                    levels = energy_and_quality(run, scope, setting.overall)
                    x, y, _ = changes(levels) if of_changes else levels
                    axes.plot(
                        x, y, linestyle="", marker=markers[arm.editor],
                        color=look[arm.variant].color, alpha=0.75, markersize=4.5,
                    )  # fmt: skip
        for axes in row:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        row[0].set_xlabel("HE change from the unedited weight, %")
        row[0].set_ylabel(f"{quality}, %")
        row[1].set_xlabel("HE change since the last evaluated step, points")
        row[1].set_ylabel(f"change of {quality}, points")
        for line in (row[1].axhline, row[1].axvline):
            line(0, color=MUTED, linestyle=":", linewidth=1.2)
        for variant, each in look.items():
            row[0].plot([], [], "s", color=each.color, label=variant)
        if len(markers) > 1:
            for editor, marker in markers.items():
                row[0].plot([], [], marker, color=INK, label=editor)
        legend(figure, row[0])
    return Drawing(
        "energy-quality",
        f"Energy against quality on scope {scope}, a point for each evaluated step.",
        f"Scatter plots of hyperspherical energy against {quality}, levels and step-to-step "
        "changes; the correlations are in the tables below.",
        figure,
    )


def lags(setting: Setting, table: Table) -> Drawing:
    """Correlation by lag, from a :func:`correlation_tables.lag_table`."""
    with style():
        figure, (row,) = panels(1, len(setting.metrics), 2.0, sharey="all")
        for metric, axes in zip(setting.metrics, row, strict=True):
            rows = table.rows[table.rows["metric"] == metric]
            r = rows["spearman_coefficient"]
            reach = np.stack([r - rows["spearman_low"], rows["spearman_high"] - r]).clip(min=0)
            axes.axhline(0, color=MUTED, linewidth=1)
            axes.errorbar(rows["lag"], r, yerr=reach, fmt="o", color=SPHERE, elinewidth=1.4)
            axes.set_title(metric.capitalize())
            axes.set_xticks(LAGS)
            axes.set_ylim(-1.05, 1.05)
            axes.set_xlabel("lag, evaluations")
        row[0].set_ylabel("Spearman’s r")
    return Drawing(
        "lags",
        "Does a rise in HE come before a fall of quality? Correlation of the step-to-step change "
        "of HE with that of quality so many evaluations later, over all runs, with 95 % intervals "
        "by block bootstrap. At a positive lag HE is first: a point below zero there says that a "
        "rise in HE is followed by a fall.",
        "Correlation of changes of energy and quality by lag, a panel for each metric; the numbers "
        "are in table correlation-lagged.",
        figure,
    )
