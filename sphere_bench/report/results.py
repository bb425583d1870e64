"""How well the edits took: the tables of a setting's scores."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas

from sphere_bench.data.records import HEADLINES
from sphere_bench.evaluation.metrics import METRICS
from sphere_bench.report.comparing import Arm, Setting, comparable
from sphere_bench.report.reading import Run
from sphere_bench.report.statistics import collapse_point, gain
from sphere_bench.report.tables import Column, Table, label, number, spread, write_number

# arXiv 2510.01172, its poster: gain in percent over the baselines, on average.
PAPER_GAINS = {"efficacy": 43.27, "generalization": 36.20, "specificity": 20.96}
UNEDITED = "unedited model"
SCORES = [f"{metric}_{kind}" for kind in HEADLINES for metric in METRICS]
COLLAPSE = (
    "The collapse point is the first step from which on efficacy stays below half of the best "
    "that it had been before."
)


def headline_table(setting: Setting, scope: str) -> Table:
    """Every arm at its last evaluated step, below the unedited model; mean and deviation."""
    arms = [
        {
            "editor": arm.editor,
            "variant": arm.variant,
            "state": "; ".join(sorted({run.state for run in arm.runs} - {"done"})) or "done",
            **_mean([_last(run, scope) for run in arm.runs]),
        }
        for arm in setting.arms
    ]
    unedited = _mean([_last(run, scope, until=0) for run in setting.runs], once=True)
    rows = [{"editor": UNEDITED, "variant": "", "state": "", **unedited, "edits": 0.0}, *arms]
    columns = [
        label("Editor", "editor"),
        label("SPHERE", "variant"),
        number("Runs", "runs", 0),
        number("Edits", "edits", 0),
        *(
            spread(metric.capitalize(), f"{metric}_{kind}", group=f"{kind.capitalize()}, %")
            for kind in setting.kinds
            for metric in METRICS
        ),
        spread("HE change, %", "he_change", 3),
    ]
    return Table(
        f"headline-{scope}",
        f"Scope {scope} at the last evaluated step",
        pandas.DataFrame(rows),
        columns,
        emphasized=frozenset([0]),
    )


def gains_table(setting: Setting, scope: str, kind: str) -> Table | None:
    """SPHERE's gain per editor, and on average beside the paper's; None without a pair of runs.

    A pair is two runs that differ in SPHERE alone; both are read at the last step that both have.
    """
    rows = []
    for arm in setting.arms:
        pairs = list(_pairs(setting, arm, scope))
        if pairs:
            rows.append(_gain_row(arm, pairs, kind))
    if not rows:
        return None
    mean = pandas.DataFrame(rows).mean(numeric_only=True)
    poster = {f"{metric}_percent": value for metric, value in PAPER_GAINS.items()}
    frame = pandas.DataFrame(
        [
            *rows,
            {"editor": "average", **_gain_columns(mean)},
            {"editor": "the paper’s average", **poster},
        ]
    )
    frame["variant"] = frame["variant"].fillna("")
    columns = [
        label("Editor", "editor"),
        label("SPHERE", "variant"),
        number("Edits", "edits", 0),
        *(column for metric in METRICS for column in _gain_pair(metric)),
    ]
    return Table(
        f"gain-{kind}",
        f"Gain in {kind} over the same editor without SPHERE, scope {scope}",
        frame,
        columns,
        emphasized=frozenset([len(rows), len(rows) + 1]),
    )


def collapse_table(setting: Setting, scope: str) -> Table:
    """The collapse point of each run."""
    rows = []
    for arm in setting.arms:
        for run in arm.runs:
            rewrites = run.scores(scope).set_index("step").drop(0, errors="ignore")
            found = collapse_point(rewrites["efficacy"].to_dict())
            if not found.best > 0:
                verdict = "no edit took"
            elif found.step is None:
                verdict = f"not within {run.progress.edits} edits"
            else:
                verdict = f"after {rewrites.loc[found.step, 'edits']} edits"
            rows.append(
                {
                    "editor": arm.editor,
                    "variant": arm.variant,
                    "seed": run.config["seed"],
                    "state": run.state,
                    "collapse": verdict,
                    "collapse_step": found.step,
                    "best": found.best,
                    "last": found.last,
                }
            )
    kind = setting.headline
    columns = [
        label("Editor", "editor"),
        label("SPHERE", "variant"),
        number("Seed", "seed", 0),
        label("Collapsed", "collapse"),
        number(f"Best efficacy {kind}, %", "best"),
        number("Last, %", "last"),
        label("Run", "state"),
    ]
    return Table("collapse", f"Collapse on scope {scope}", pandas.DataFrame(rows), columns)


def _last(run: Run, scope: str, until: float = float("inf")) -> "pandas.Series[Any]":
    """The scope's last row up to a step, empty where there is none."""
    rows = run.scores(scope)
    rows = rows[rows["step"] <= until]
    if rows.empty:
        return pandas.Series(dtype=float)
    last = rows.iloc[-1]
    return pandas.concat([last, pandas.Series({"he_change": 100 * (last["he_ratio"] - 1)})])


def _mean(rows: Sequence["pandas.Series[Any]"], once: bool = False) -> dict[str, float]:
    """Mean and deviation; with ``once`` runs that start alike count as one."""
    names = ["edits", "he_change", *SCORES]
    numbers = pandas.DataFrame(rows).reindex(columns=names).astype(float)
    if once:
        numbers = numbers.drop_duplicates()
    return {
        "runs": float(len(rows)),
        **numbers.mean().to_dict(),
        **numbers.std().add_suffix("_std").to_dict(),
    }


def _pairs(
    setting: Setting, arm: Arm, scope: str
) -> Iterable[tuple["pandas.Series[Any]", "pandas.Series[Any]"]]:
    """Rows without and with SPHERE of runs otherwise the same, at the last step of both."""
    if not arm.enabled:
        return
    baselines = {
        comparable(run, without=["sphere."]): run
        for other in setting.arms_of(arm.editor)
        for run in other.runs
        if not other.enabled
    }
    for run in arm.runs:
        baseline = baselines.get(comparable(run, without=["sphere."]))
        if baseline is None:
            continue
        both = set(run.scores(scope)["step"]) & set(baseline.scores(scope)["step"])
        if (step := max(both, default=0)) > 0:
            yield _last(baseline, scope, until=step), _last(run, scope, until=step)


def _gain_row(
    arm: Arm, pairs: Sequence[tuple["pandas.Series[Any]", "pandas.Series[Any]"]], kind: str
) -> dict[str, Any]:
    row: dict[str, Any] = {"editor": arm.editor, "variant": arm.variant, "runs": len(pairs)}
    row["edits"] = max(on["edits"] for _, on in pairs)
    for metric in METRICS:
        values = pandas.DataFrame(pairs, columns=["without", "with"]).map(
            lambda scores: scores[f"{metric}_{kind}"]  # noqa: B023 - called at once
        )
        means = values.astype(float).mean()
        row[f"{metric}_without"], row[f"{metric}_with"] = means["without"], means["with"]
        points, percent = gain(means["without"], means["with"])
        row[f"{metric}_points"], row[f"{metric}_percent"] = points, percent
        row[f"{metric}_points_std"] = (values["with"] - values["without"]).astype(float).std()
    return row


def _gain_columns(mean: "pandas.Series[Any]") -> dict[str, float]:
    kept = ("_points", "_percent")
    return {str(key): value for key, value in mean.items() if str(key).endswith(kept)}


def _gain_pair(metric: str) -> list[Column]:
    group = metric.capitalize()
    return [
        spread("points", f"{metric}_points", group=group, sign=True),
        Column("%", lambda row: write_number(row.get(f"{metric}_percent"), 1, sign=True), group),
    ]
