"""What the tables of a run hold that was recorded before runs declared it themselves."""

from itertools import product

import pandas

from sphere_bench.report.declarations import Declarations, DeclaredColumn, Kind

_METRICS = {
    "efficacy": "the edit's own prompt",
    "generalization": "rewordings of the edit's prompt",
    "specificity": "prompts that the edit must leave alone",
    "score": "harmonic mean of efficacy, generalization and specificity",
}
_MEASURES = {
    "success": "share of prompts on which the wanted answer is likelier than the other one",
    "accuracy": "the wanted tokens are the likeliest of all",
}
_EFFICACIES = ("efficacy", "efficacy_success")
_STAGES = ("values", "keys", "update", "transform", "evaluate", "energy")

DECLARATIONS = Declarations(
    columns=[
        *(
            DeclaredColumn(
                "steps",
                f"{metric}_{measure}",
                unit="%",
                meaning=f"{_METRICS[metric]}: {_MEASURES[measure]}",
                per="scope",
                metric=metric,
                measure=measure,
            )
            for metric, measure in product(_METRICS, _MEASURES)
        ),
        *(
            DeclaredColumn("steps", f"seconds_{stage}", unit="s", per="step", stage=stage)
            for stage in _STAGES
        ),
        DeclaredColumn("layers", "layer", per="layer"),
        DeclaredColumn("cases", "kind"),
        DeclaredColumn("geometry", "layer"),
    ],
    kinds=[
        Kind("rewrite", "efficacy"),
        Kind("paraphrase", "generalization"),
        Kind("neighbourhood", "specificity"),
    ],
)


def headline(steps: pandas.DataFrame) -> str:
    """Which measure the column ``efficacy`` repeats."""
    efficacy, success = (steps.get(name, pandas.Series()) for name in _EFFICACIES)
    same = efficacy.eq(success) | efficacy.isna()
    return "success" if success.notna().any() and same.all() else "accuracy"
