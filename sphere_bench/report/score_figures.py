"""Figures of how the edits fare: scores over the stream, perplexity, SPHERE's gain, retention."""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas
from matplotlib.ticker import LogFormatter, MaxNLocator

from sphere_bench.report.comparing import SCOPES, Setting
from sphere_bench.report.declarations import Kind
from sphere_bench.report.drawing import (
    BASELINE,
    INK,
    MUTED,
    SPHERES,
    Drawing,
    draw_runs,
    legend,
    looks,
    panels,
    style,
)
from sphere_bench.report.reading import Run, column_of
from sphere_bench.report.tables import Table

# Enough for a page; more rows or columns are merged.
_MOST_CELLS = 60
_MOST_PANELS_ABREAST = 4


def curves(setting: Setting, scope: str, measure: str) -> Drawing:
    """Every metric over edits: a row for each editor, with and without SPHERE in each panel."""
    metrics, look = setting.metrics_of(measure), looks(setting)
    unit = setting.unit(measure)
    with style():
        figure, grid = panels(len(setting.editors), len(metrics), 1.55, sharex="all", sharey="all")
        for editor, row in zip(setting.editors, grid, strict=True):
            for metric, axes in zip(metrics, row, strict=True):
                unedited = []
                for arm in setting.arms_of(editor):
                    scored = [_by_edits(run, scope, metric, measure) for run in arm.runs]
                    draw_runs(axes, [each[each.index > 0] for each in scored], look[arm.variant])
                    unedited += [each[0] for each in scored if 0 in each]
                if unedited:
                    level = float(np.mean(unedited))
                    axes.axhline(level, color=MUTED, linestyle=":", linewidth=1.2)
                if unit == "%":
                    axes.set_ylim(-3, 103)
            row[0].set_ylabel(editor, fontweight="bold")
        for metric, top, bottom in zip(metrics, grid[0], grid[-1], strict=True):
            top.set_title(f"{metric.capitalize()} {measure}{f', {unit}' if unit else ''}")
            bottom.set_xlabel("edits")
            bottom.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        for variant, each in look.items():
            grid[0][0].plot([], [], color=each.color, linestyle=each.linestyle, label=variant)
        grid[0][0].plot([], [], color=MUTED, linestyle=":", label="unedited model")
        legend(figure, grid[0][0])
    return Drawing(
        f"curves-{scope}" if measure == setting.headline else f"curves-{scope}-{measure}",
        f"{measure.capitalize()} on scope {scope}: {SCOPES.get(scope, scope)}. Lines are means "
        "over runs, bands go from the lowest run to the highest.",
        f"Line charts of {', '.join(metrics)} ({measure}) over edits on scope {scope}, a row for "
        f"each of {', '.join(setting.editors)}, with a line for each of "
        f"{', '.join(setting.variants)}. The last values are in table headline-{scope}.",
        figure,
    )


def perplexity(setting: Setting) -> Drawing | None:
    """Of the fixed text over edits, a panel for each editor; None where no run measured it."""
    if not any(len(run.step_values("perplexity")) for run in setting.runs):
        return None
    look = looks(setting)
    with style():
        columns = min(len(setting.editors), _MOST_PANELS_ABREAST)
        count = -(-len(setting.editors) // columns)
        width = min(9.0, 1.5 + 3.2 * columns)
        figure, grid = panels(count, columns, 1.9, width=width, sharex="all", sharey="all")
        every_panel = [axes for row in grid for axes in row]
        for editor, axes in zip_longest(setting.editors, every_panel):
            if editor is None:
                axes.set_axis_off()
                continue
            for arm in setting.arms_of(editor):
                series = [run.step_values("perplexity", by="edits") for run in arm.runs]
                draw_runs(axes, series, look[arm.variant])
            axes.set_title(editor)
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
            axes.set_xlabel("edits")
            axes.tick_params(labelbottom=True)  # there may be no panel below it
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        for row in grid:
            row[0].set_ylabel("perplexity")
        for variant, each in look.items():
            grid[0][0].plot([], [], color=each.color, linestyle=each.linestyle, label=variant)
        legend(figure, grid[0][0])
    return Drawing(
        "perplexity",
        "Perplexity of one fixed text (perplexity.corpus) on a logarithmic scale; a line ends "
        "where it is no longer finite.",
        "Line charts of the perplexity of a fixed text over edits, a panel for each of "
        f"{', '.join(setting.editors)}, with a line for each of {', '.join(setting.variants)}.",
        figure,
    )


def gains(setting: Setting, table: Table, measure: str) -> Drawing:
    """SPHERE's gain in points, a bar for each editor, from a :func:`gain_tables.gains_table`."""
    rows = table.rows[table.rows["edits"].notna()]
    several = rows["editor"].duplicated().any()
    names = rows["editor"] + ("\n" + rows["variant"] if several else "")
    metrics = setting.metrics_of(measure)
    with style():
        height = 0.5 + 0.28 * len(rows)
        figure, (row,) = panels(1, len(metrics), height, sharex="all", sharey="all")
        for metric, axes in zip(metrics, row, strict=True):
            points, low, high = (rows[f"{metric}_{part}"] for part in ("points", "low", "high"))
            colors = [SPHERES[0] if value >= 0 else BASELINE for value in points]
            places = np.arange(len(rows))
            axes.barh(places, points, height=0.6, color=colors)
            known = low.notna().to_numpy()
            axes.errorbar(
                points[known],
                places[known],
                xerr=np.stack([points - low, high - points])[:, known],
                fmt="none",
                ecolor=INK,
                elinewidth=1,
            )
            axes.axvline(0, color=INK, linewidth=0.8)
            axes.set_title(metric.capitalize())
            axes.set_xlabel("points")
            axes.grid(axis="y", visible=False)
        row[0].set_yticks(np.arange(len(rows)), names)
        row[0].invert_yaxis()
        # Not to magnify rounding where nothing is gained.
        low, high = row[0].get_xlim()
        row[0].set_xlim(min(low, -1), max(high, 1))
    return Drawing(
        table.name,
        f"Gain of SPHERE in {measure}, in points; whiskers are 95 % intervals over seeds, and with "
        "one seed there is none.",
        f"Bar charts of SPHERE's gain in {measure}, in points, for each editor and metric; the "
        f"numbers are in table {table.name}.",
        figure,
    )


def retention(setting: Setting, measure: str) -> Drawing | None:
    """A measure by when a fact was edited and when it is asked; None where no prompt has it."""
    kind = _kind_of_edits(setting, measure)
    if kind is None:
        return None
    every = {
        (arm.editor, arm.variant): retention_by_age(arm.runs, kind.name, measure)
        for arm in setting.arms
    }
    if not any(len(matrix) for matrix in every.values()):
        return None
    what = f"{kind.metric} {measure}"
    with style():
        columns = len(setting.variants)
        width = min(9.0, 1.5 + 3.2 * columns)
        figure, grid = panels(len(setting.editors), columns, 2.3, width=width)
        for editor, row in zip(setting.editors, grid, strict=True):
            for variant, axes in zip(setting.variants, row, strict=True):
                matrix = every.get((editor, variant), pandas.DataFrame())
                if matrix.empty:
                    axes.set_axis_off()
                    continue
                image = axes.imshow(
                    matrix, cmap="cividis", vmin=0, vmax=100, origin="lower", interpolation="none",
                    aspect="auto",
                )  # fmt: skip
                axes.grid(visible=False)
                axes.set_title(f"{editor} {variant}")
                _ticks(axes.set_xticks, matrix.columns)
                _ticks(axes.set_yticks, matrix.index)
        for row in grid:
            row[0].set_ylabel("edited after … edits")
        for axes in grid[-1]:
            axes.set_xlabel("asked after … edits")
        every_panel = [axes for row in grid for axes in row]
        pad = 0.1 / figure.get_figheight()
        bar = figure.colorbar(image, ax=every_panel, location="top", aspect=50, shrink=0.6, pad=pad)
        bar.set_label(f"{what}, %")
        bar.outline.set_visible(False)
    return Drawing(
        "retention" if measure == setting.headline else f"retention-{measure}",
        f"Retention by {measure}: how facts fare by age. Each row of cells is the facts of one or "
        "several batches, from left to right as more is edited; the diagonal is what was just "
        "edited. From the records that the scopes sample; empty cells were not sampled, or "
        "a later edit has given all of their facts another target.",
        f"Heat maps of {what} in percent by when a fact was edited and when it was asked, "
        f"one for each of {', '.join(arm.label for arm in setting.arms)}.",
        figure,
    )


def _by_edits(run: Run, scope: str, metric: str, measure: str) -> "pandas.Series[float]":
    return column_of(run.scores(scope, measure).set_index("edits"), metric)


def _kind_of_edits(setting: Setting, measure: str) -> Kind | None:
    """The first kind of prompt that a table of single prompts has the measure of."""
    for run in setting.runs:
        table, column = run.declared.prompts_of(measure)
        prompts = run.table(table)
        if not {"kind", column} <= set(prompts):
            continue
        scored = set(prompts.loc[prompts[column].notna(), "kind"])
        for kind in run.declared.kinds:
            if kind.name in scored:
                return kind
    return None


def retention_by_age(runs: Sequence[Run], kind: str, measure: str) -> pandas.DataFrame:
    """[edited after, asked after] mean score in percent over records, then over runs.

    Args:
        runs: with the same records.
        kind: of the prompts.
        measure: such as ``success``.
    """
    matrices = []
    for run in runs:
        table, column = run.declared.prompts_of(measure)
        cases = run.table(table)
        if column not in cases:
            continue
        cases = cases[cases["kind"] == kind].query("step > 0 and edited_at <= step")
        # A record may be in several scopes of a step.
        cases = cases.drop_duplicates(["step", "case_id", "prompt_index"])
        batch, total = run.progress.batch_size, run.progress.total
        edited = (cases["edited_at"] * batch).clip(upper=total)
        scores = cases.assign(edited=edited).groupby(["edited", "edits"])[column].mean()
        matrices.append(100 * scores.unstack())
    empty: pandas.DataFrame = pandas.DataFrame()
    if not matrices:
        return empty
    mean = pandas.concat(matrices).groupby(level=0).mean()
    merged: pandas.DataFrame = _merged(_merged(mean.sort_index(axis=1)).T).T
    return merged


def _merged(matrix: pandas.DataFrame) -> pandas.DataFrame:
    """Neighbouring rows merged until there are few enough, each named by its last."""
    size = -(-len(matrix) // _MOST_CELLS)
    groups = np.arange(len(matrix)) // size
    merged: pandas.DataFrame = matrix.groupby(groups).mean()
    merged.index = matrix.index.to_series().groupby(groups).last().to_list()
    return merged


def _ticks(setter: Callable[[Any, list[str]], object], values: "pandas.Index[Any]") -> None:
    places = np.unique(np.linspace(0, len(values) - 1, min(len(values), 5)).round().astype(int))
    setter(places, [str(values[place]) for place in places])
