"""Where each run collapsed, by the rule that ends a run."""

from collections.abc import Sequence

import pandas

from sphere_bench.evaluation.collapse import Collapse
from sphere_bench.report.comparing import Setting
from sphere_bench.report.reading import Run, column_of
from sphere_bench.report.tables import Table, label, number

SCOPE = "batch"
# For runs that set no threshold of their own.
DEFAULT = Collapse(efficacy=50.0)
MEANING = (
    "The collapse point is the first evaluated step from which on, to the run’s last, the batch "
    "just edited passes the run’s own thresholds (collapse.efficacy, collapse.perplexity); runs "
    "without any are judged by an efficacy below 50 %. Batches that were left out do not count."
)
_NUMBERS = ["efficacy", "perplexity", "unedited_perplexity"]


def collapse_point(reached: Sequence[bool]) -> int | None:
    """Index of the first of the ``True`` values that end the sequence; None where none do."""
    last_false = max((index for index, each in enumerate(reached) if not each), default=-1)
    return last_false + 1 if last_false + 1 < len(reached) else None


def collapse_table(setting: Setting, rule: Collapse | None = None) -> Table:
    """The collapse point of each run, see :data:`MEANING`.

    Args:
        rule: for all runs; ``None`` takes each run's own.
    """
    rows = []
    for arm in setting.arms:
        for run in arm.runs:
            scores, point = _scores_and_point(run, setting, rule)
            if scores.empty:
                verdict = "no batch was evaluated"
            elif point is None:
                verdict = f"not within {run.progress.edits} edits"
            else:
                verdict = f"after {scores['edits'].iloc[point]} edits"
            rows.append(
                {
                    "editor": arm.editor,
                    "variant": arm.variant,
                    "seed": run.config["seed"],
                    "state": run.state,
                    "rule": _describe(rule or _rule(run)),
                    "collapse": verdict,
                    "collapse_step": None if point is None else scores["step"].iloc[point],
                    "best": scores["efficacy"].max(),
                    "last": scores["efficacy"].iloc[-1] if len(scores) else float("nan"),
                }
            )
    metric = f"{setting.metrics[0]} {setting.headline}"
    columns = [
        label("Editor", "editor"),
        label("SPHERE", "variant"),
        number("Seed", "seed", 0),
        label("Collapsed", "collapse"),
        label("Rule", "rule"),
        number(f"Best {metric}, %", "best"),
        number("Last, %", "last"),
        label("Run", "state"),
    ]
    return Table("collapse", f"Collapse on scope {SCOPE}", pandas.DataFrame(rows), columns)


def collapse_step(run: Run, setting: Setting, rule: Collapse | None = None) -> int | None:
    """The step of a run's collapse point, by ``rule`` or the run's own; None where it has none."""
    scores, point = _scores_and_point(run, setting, rule)
    return None if point is None else int(scores["step"].iloc[point])


def _scores_and_point(
    run: Run, setting: Setting, rule: Collapse | None
) -> tuple[pandas.DataFrame, int | None]:
    used, scores = rule or _rule(run), _scores(run, setting)
    reached = [used.reached(*numbers) for numbers in scores[_NUMBERS].itertuples(False)]
    return scores, collapse_point(reached)


def _scores(run: Run, setting: Setting) -> pandas.DataFrame:
    """What the rule looks at, after each evaluated batch that was not left out."""
    scores = run.scores(SCOPE, setting.headline)
    perplexity = run.step_values("perplexity")
    scores = scores.assign(
        efficacy=column_of(scores, setting.metrics[0]),
        perplexity=perplexity.reindex(scores["step"]).to_numpy(),
        unedited_perplexity=perplexity.get(0, float("nan")),
    )
    skipped = run.steps.loc[run.steps["skipped"].astype(bool), "step"]
    counted: pandas.DataFrame = scores[(scores["step"] > 0) & ~scores["step"].isin(skipped)]
    return counted


def _rule(run: Run) -> Collapse:
    own = Collapse(run.config.get("collapse.efficacy"), run.config.get("collapse.perplexity"))
    return own if own.is_set else DEFAULT


def _describe(rule: Collapse) -> str:
    passed = []
    if rule.efficacy is not None:
        passed.append(f"efficacy below {rule.efficacy:g} %")
    if rule.perplexity is not None:
        passed.append(f"perplexity above {rule.perplexity:g} times the unedited")
    return " and ".join(passed)
