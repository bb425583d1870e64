"""Figures of the edited weights: angles between neurons, principal plane, norms."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sphere_bench.report.comparing import Arm, Setting
from sphere_bench.report.drawing import (
    MUTED,
    Drawing,
    Look,
    draw_runs,
    legend,
    looks,
    panels,
    style,
)
from sphere_bench.report.reading import Run

_MOST_LAYERS = 4
_NORMS = {
    "weight_norm": "Weight norm",
    "update_norm": "Update norm, proposed",
    "applied_norm": "Update norm, applied",
    "drift": "Drift, %",
}
_PORTRAIT = {"layer", "cosine_counts", "plane_x", "plane_y"}


def cosines(setting: Setting) -> Drawing | None:
    """Distribution of the cosine between neurons, before and after; None where not recorded.

    A row for each editor, in it a panel for each of its layers, four at most.
    """
    runs = {editor: _with_portraits(setting, editor) for editor in setting.editors}
    if not any(runs.values()):
        return None
    layers = {editor: _chosen(_layers(each)) for editor, each in runs.items()}
    look, every = looks(setting), [run for each in runs.values() for run in each]
    with style():
        columns = max(map(len, layers.values()))
        figure, grid = panels(len(setting.editors), columns, 1.6)
        for editor, row in zip(setting.editors, grid, strict=True):
            for layer, axes in zip_longest(layers[editor], row):
                if layer is None:
                    axes.set_axis_off()
                    continue
                bins = _range(layer, every)
                _draw_cosines(axes, setting.arms_of(editor), layer, look, bins)
                axes.set_title(f"layer {layer}")
            row[0].set_ylabel(editor, fontweight="bold")
        for axes in grid[-1]:
            axes.set_xlabel("cosine similarity")
        figure.supylabel("share of pairs, %", fontsize="medium")
        grid[0][0].fill_between([], [], color=MUTED, alpha=0.4, label="unedited model")
        for variant, each in look.items():
            grid[0][0].plot([], [], color=each.color, linestyle=each.linestyle, label=variant)
        legend(figure, grid[0][0])
    return Drawing(
        "cosines",
        "Cosine similarity between neurons, all pairs, before the first edit and at the last "
        "evaluated step. SPHERE is meant to keep these distributions where they were.",
        "Distributions of the cosine similarity between neurons, unedited and after the edits, "
        f"with and without SPHERE, in edited layers of each of {', '.join(setting.editors)}; "
        "means and percentiles are in table cosines.",
        figure,
    )


def principal_plane(setting: Setting) -> Drawing | None:
    """Neurons in the plane of the unedited weight's two strongest principal directions."""
    layers = {editor: _layers(_with_portraits(setting, editor))[-1:] for editor in setting.editors}
    if not any(layers.values()):
        return None
    look = looks(setting)
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
                drawn = [(run, layer) for layer in layers[editor] for run in every]
                drawn = [(run, layer) for run, layer in drawn if len(run.portraits(layer))]
                if not drawn:
                    axes.set_axis_off()
                    continue
                run, layer = drawn[0]
                _draw_plane(axes, run.portraits(layer), look[variant])
                axes.set_title(f"{editor} {variant}, layer {layer}")
            row[0].set_ylabel("2nd direction")
        for axes in grid[-1]:
            axes.set_xlabel("1st principal direction")
        grid[0][0].plot([], [], "o", color=MUTED, label="unedited model")
        for variant, each in look.items():
            grid[0][0].plot([], [], "o", color=each.color, label=variant)
        legend(figure, grid[0][0])
    return Drawing(
        "plane",
        "Neurons of each editor’s last edited layer in the plane of the unedited weight’s two "
        "strongest principal directions: at most 256 of them, at the last evaluated step, in the "
        "first run of each. SPHERE takes the share α out of an update’s part in such directions.",
        "Scatter plots of neurons in the unedited weight's principal plane, before and after the "
        f"edits, with and without SPHERE, for each of {', '.join(setting.editors)}.",
        figure,
    )


def norms(setting: Setting) -> Drawing | None:
    """Norms and drift over edits, means over edited layers; None where none was recorded."""
    look = looks(setting)
    recorded = {
        column: {
            arm.label: [_mean_over_layers(run, column) for run in arm.runs] for arm in setting.arms
        }
        for column in _NORMS
    }
    shown = [
        column
        for column in _NORMS
        if any(len(each) for runs in recorded[column].values() for each in runs)
    ]
    if not shown:
        return None
    with style():
        figure, grid = panels(len(setting.editors), len(shown), 1.55, sharex="all")
        for editor, row in zip(setting.editors, grid, strict=True):
            for column, axes in zip(shown, row, strict=True):
                for arm in setting.arms_of(editor):
                    factor = 100 if column == "drift" else 1
                    runs = [factor * each for each in recorded[column][arm.label]]
                    draw_runs(axes, runs, look[arm.variant])
                axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
            row[0].set_ylabel(editor, fontweight="bold")
        for column, top, bottom in zip(shown, grid[0], grid[-1], strict=True):
            top.set_title(_NORMS[column])
            bottom.set_xlabel("edits")
        for variant, each in look.items():
            grid[0][0].plot([], [], color=each.color, linestyle=each.linestyle, label=variant)
        legend(figure, grid[0][0])
    return Drawing(
        "norms",
        "Norms of the weight and of its updates, before and after SPHERE and the other transforms, "
        "and drift ||W − W₀|| / ||W₀||; means over edited layers.",
        f"Line charts of weight norm, update norms and drift over edits for each of "
        f"{', '.join(arm.label for arm in setting.arms)}; the last values are in table weights.",
        figure,
    )


def _mean_over_layers(run: Run, column: str) -> "pandas.Series[float]":
    layers = run.layers.reindex(columns=["step", "edits", column]).astype(float).dropna()
    means: pandas.Series[float] = layers[layers["step"] > 0].groupby("edits")[column].mean()
    return means


def _with_portraits(setting: Setting, editor: str) -> list[Run]:
    runs = [run for arm in setting.arms_of(editor) for run in arm.runs]
    return [run for run in runs if set(run.geometry) >= _PORTRAIT and len(run.geometry)]


def _layers(runs: Sequence[Run]) -> list[int]:
    return sorted({int(layer) for run in runs for layer in run.geometry["layer"]})


def _chosen(layers: list[int]) -> list[int]:
    places = np.linspace(0, len(layers) - 1, min(len(layers), _MOST_LAYERS)).round().astype(int)
    return [layers[place] for place in places]


def _draw_cosines(
    axes: Axes, arms: Sequence[Arm], layer: int, look: dict[str, Look], bins: tuple[int, int]
) -> None:
    drawn: list[tuple[NDArray[np.int64], dict[str, Any]]] = []
    for arm in arms:
        rows = [each for run in arm.runs if len(each := run.portraits(layer))]
        if rows and not drawn:
            drawn.append((rows[0].iloc[0]["cosine_counts"], {}))
        if rows:
            counts = np.sum([each.iloc[-1]["cosine_counts"] for each in rows], axis=0)
            line = look[arm.variant]
            drawn.append((counts, {"color": line.color, "linestyle": line.linestyle}))
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


def _range(layer: int, runs: Sequence[Run]) -> tuple[int, int]:
    """Bins that hold all but the outermost one in a thousand pairs of each run, at either end."""
    bounds, every = [], 0
    for rows in (each for run in runs if len(each := run.portraits(layer))):
        for counts in (rows.iloc[0]["cosine_counts"], rows.iloc[-1]["cosine_counts"]):
            reached = np.cumsum(counts) / max(np.sum(counts), 1)
            bounds.append(np.searchsorted(reached, [0.001, 0.999]))
            every = len(counts)
    return int(np.min(bounds)), min(int(np.max(bounds)) + 1, every)


def _draw_plane(axes: Axes, rows: pandas.DataFrame, look: Look) -> None:
    before, after = rows.iloc[0], rows.iloc[-1]
    nothing = np.full(len(before["plane_x"]), np.nan)
    paths = [
        np.stack([before[axis], after[axis], nothing], axis=1).ravel()
        for axis in ("plane_x", "plane_y")
    ]
    axes.plot(*paths, color=look.color, linewidth=0.5, alpha=0.35)
    for each, color, size in ((before, MUTED, 2.5), (after, look.color, 2.8)):
        axes.plot(each["plane_x"], each["plane_y"], "o", color=color, markersize=size, alpha=0.8)
