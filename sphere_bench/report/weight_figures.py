"""Figures of the edited weights: energy, angles between neurons, principal plane, norms."""

from itertools import cycle
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sphere_bench.evaluation.metrics import METRICS
from sphere_bench.report.comparing import Arm, Setting
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
from sphere_bench.report.measures import energy_and_quality
from sphere_bench.report.reading import Run
from sphere_bench.report.statistics import LAGS, changes
from sphere_bench.report.tables import Table

_MOST_LAYERS = 4
_NORMS = {
    "weight_norm": "Weight norm",
    "update_norm": "Update norm, proposed",
    "applied_norm": "Update norm, applied",
    "drift": "Drift, %",
}


def energy(setting: Setting) -> Drawing:
    """HE change of every edited layer over edits: a row an editor, a column a variant."""
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
                        runs = [_layer(run, layer, "he_ratio") for run in arms[variant].runs]
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
    """A point an evaluated step: levels on the left, step-to-step changes on the right."""
    look = looks(setting)
    markers = dict(zip(setting.editors, cycle("osD^vPX<>*"), strict=False))
    with style():
        figure, (row,) = panels(1, 2, 3.2)
        for axes, transform in zip(row, (lambda series: series, changes), strict=True):
            for arm in setting.arms:
                for run in arm.runs:
                    x, y = transform(energy_and_quality(run, scope, "score"))
                    axes.plot(
                        x, y, linestyle="", marker=markers[arm.editor],
                        color=look[arm.variant].color, alpha=0.75, markersize=4.5,
                    )  # fmt: skip
        row[0].set_xlabel("HE change from the unedited weight, %")
        row[0].set_ylabel(f"score {setting.headline}, %")
        row[1].set_xlabel("HE change since the last evaluated step, points")
        row[1].set_ylabel(f"change of score {setting.headline}, points")
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
        f"Energy against quality on scope {scope}, a point an evaluated step.",
        f"Scatter plots of hyperspherical energy against score ({setting.headline}), levels and "
        "step-to-step changes; the correlations stand in the tables below.",
        figure,
    )


def lags(table: Table) -> Drawing:
    """Correlation by lag, from a :func:`measures.lag_table`."""
    with style():
        figure, (row,) = panels(1, 4, 2.0, sharey="all")
        for metric, axes in zip(METRICS, row, strict=True):
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
        "of HE with that of quality so many evaluations later, pooled, with 95 % bootstrap "
        "intervals. At a positive lag HE is first: a point below zero there says that a rise in HE "
        "is followed by a fall.",
        "Correlation of changes of energy and quality by lag, one panel a metric; the numbers "
        "stand in table correlation-lagged.",
        figure,
    )


def cosines(setting: Setting) -> Drawing | None:
    """Distribution of the cosine between neurons, before and after; None where not recorded."""
    recorded = [run for run in setting.runs if len(run.geometry)]
    if not recorded:
        return None
    look = looks(setting)
    layers = _chosen(sorted(set(recorded[0].geometry["layer"])))
    ranges = {layer: _range(layer, recorded) for layer in layers}
    with style():
        figure, grid = panels(len(setting.editors), len(layers), 1.6, sharex="col")
        for editor, row in zip(setting.editors, grid, strict=True):
            for layer, axes in zip(layers, row, strict=True):
                _draw_cosines(axes, setting.arms_of(editor), layer, look, ranges[layer])
            row[0].set_ylabel(editor, fontweight="bold")
        for layer, top, bottom in zip(layers, grid[0], grid[-1], strict=True):
            top.set_title(f"layer {layer}")
            bottom.set_xlabel("cosine similarity")
        figure.supylabel("share of pairs, %", fontsize="medium")
        grid[0][0].fill_between([], [], color=MUTED, alpha=0.4, label="unedited model")
        for variant, each in look.items():
            grid[0][0].plot([], [], color=each.color, linestyle=each.linestyle, label=variant)
        legend(figure, grid[0][0])
    return Drawing(
        "cosines",
        "Cosine similarity between neurons, all pairs, before the first edit and at the last "
        "evaluated step. SPHERE is meant to keep these distributions where they were.",
        f"Distributions of the cosine similarity between neurons in layers "
        f"{', '.join(map(str, layers))}, unedited and after the edits, for each editor with and "
        "without SPHERE; means and percentiles stand in table weights.",
        figure,
    )


def principal_plane(setting: Setting) -> Drawing | None:
    """Neurons in the plane of the unedited weight's two strongest principal directions."""
    recorded = [run for run in setting.runs if len(run.geometry)]
    if not recorded:
        return None
    look = looks(setting)
    layer = max(recorded[0].geometry["layer"])
    with style():
        columns = len(setting.variants)
        width = min(9.0, 1.0 + 3.2 * columns)
        figure, grid = panels(
            len(setting.editors), columns, 2.6, width=width, sharex="row", sharey="row"
        )
        for editor, row in zip(setting.editors, grid, strict=True):
            arms = {arm.variant: arm for arm in setting.arms_of(editor)}
            for variant, axes in zip(setting.variants, row, strict=True):
                every = arms[variant].runs if variant in arms else []
                runs = [run for run in every if len(run.geometry)]
                if not runs:
                    axes.set_axis_off()
                    continue
                _draw_plane(axes, runs[0], layer, look[variant])
                axes.set_title(f"{editor} {variant}")
            row[0].set_ylabel("2nd direction")
        for axes in grid[-1]:
            axes.set_xlabel("1st principal direction")
        grid[0][0].plot([], [], "o", color=MUTED, label="unedited model")
        for variant, each in look.items():
            grid[0][0].plot([], [], "o", color=each.color, label=variant)
        legend(figure, grid[0][0])
    return Drawing(
        "plane",
        f"Neurons of layer {layer} in the plane of the unedited weight’s two strongest principal "
        "directions: at most 256 of them, at the last evaluated step, in the first run of each. "
        "SPHERE takes the share α out of an update’s part in such directions.",
        f"Scatter plots of the neurons of layer {layer} in the unedited weight's principal plane, "
        "before and after the edits, for each editor with and without SPHERE.",
        figure,
    )


def norms(setting: Setting) -> Drawing:
    """Norms and drift over edits, means over edited layers."""
    look = looks(setting)
    with style():
        figure, grid = panels(len(setting.editors), 4, 1.55, sharex="all")
        for editor, row in zip(setting.editors, grid, strict=True):
            for (column, title), axes in zip(_NORMS.items(), row, strict=True):
                for arm in setting.arms_of(editor):
                    factor = 100 if column == "drift" else 1
                    runs = [factor * _mean_over_layers(run, column) for run in arm.runs]
                    draw_runs(axes, runs, look[arm.variant], label=arm.variant)
                if row is grid[0]:
                    axes.set_title(title)
                if row is grid[-1]:
                    axes.set_xlabel("edits")
                axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
            row[0].set_ylabel(editor, fontweight="bold")
        legend(figure, grid[0][0])
    return Drawing(
        "norms",
        "Norms of the weight and of its updates, before and after SPHERE and the other transforms, "
        "and drift ||W − W₀|| / ||W₀||; means over edited layers.",
        f"Line charts of weight norm, update norms and drift over edits for each of "
        f"{', '.join(arm.label for arm in setting.arms)}; the last values stand in table weights.",
        figure,
    )


def _layer(run: Run, layer: int, column: str) -> pandas.Series:
    return run.layer(layer).set_index("edits")[column]


def _mean_over_layers(run: Run, column: str) -> pandas.Series:
    return run.layers[run.layers["step"] > 0].groupby("edits")[column].mean()


def _chosen(layers: list[int]) -> list[int]:
    places = np.linspace(0, len(layers) - 1, min(len(layers), _MOST_LAYERS)).round().astype(int)
    return [layers[place] for place in places]


def _draw_cosines(
    axes: Axes, arms: list[Arm], layer: int, look: dict[str, Look], bins: tuple[int, int]
) -> None:
    drawn: list[tuple[np.ndarray, dict[str, Any]]] = []
    for arm in arms:
        rows = [run.portraits(layer) for run in arm.runs]
        rows = [each for each in rows if len(each)]
        if rows and not drawn:
            drawn.append((rows[0].iloc[0]["cosine_counts"], {}))
        if rows:
            counts = np.sum([each.iloc[-1]["cosine_counts"] for each in rows], axis=0)
            each = look[arm.variant]
            drawn.append((counts, {"color": each.color, "linestyle": each.linestyle}))
    if not drawn:
        axes.set_axis_off()
        return
    low, high = bins
    every, size = len(drawn[0][0]), max(1, round((high - low) / 60))
    edges = np.arange(low, high + size, size).clip(max=every)
    centres = (edges[:-1] + edges[1:]) / every - 1
    for index, (counts, options) in enumerate(drawn):
        inside = np.concatenate([[0], np.cumsum(counts)])[edges]
        share = 100 * np.diff(inside) / max(np.sum(counts), 1)
        if index == 0:
            axes.fill_between(centres, share, color=MUTED, alpha=0.4, linewidth=0)
        else:
            axes.plot(centres, share, **options)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(4))


def _range(layer: int, runs: list[Run]) -> tuple[int, int]:
    """Bins that hold all but the outermost two in a thousand pairs of each run, at either end."""
    bounds = []
    for run in runs:
        rows = run.portraits(layer)
        for counts in (rows.iloc[0]["cosine_counts"], rows.iloc[-1]["cosine_counts"]):
            reached = np.cumsum(counts) / max(np.sum(counts), 1)
            bounds.append(np.searchsorted(reached, [0.001, 0.999]))
    return int(np.min(bounds)), min(int(np.max(bounds)) + 1, len(counts))


def _draw_plane(axes: Axes, run: Run, layer: int, look: Look) -> None:
    rows = run.portraits(layer)
    before, after = rows.iloc[0], rows.iloc[-1]
    nothing = np.full(len(before["plane_x"]), np.nan)
    paths = [
        np.stack([before[axis], after[axis], nothing], axis=1).ravel()
        for axis in ("plane_x", "plane_y")
    ]
    axes.plot(*paths, color=look.color, linewidth=0.5, alpha=0.35)
    for each, color, size in ((before, MUTED, 2.5), (after, look.color, 2.8)):
        axes.plot(each["plane_x"], each["plane_y"], "o", color=color, markersize=size, alpha=0.8)
