"""The table that ends a run: the unedited model beside the last evaluated step."""

from pathlib import Path

from sphere_bench.recording import read_table

METRICS = ("efficacy", "generalization", "specificity", "score")


def summarize_run(folder: Path, headline: str) -> str:
    """What happened, scope by scope, and where the files are.

    Args:
        folder: the run's folder, with at least one recorded step.
        headline: what the metrics are, ``success`` or ``accuracy``.
    """
    steps = read_table(folder, "steps")
    steps = steps[steps["records"] > 0]
    chosen = steps[steps["step"].isin([0, steps["step"].max()])]
    table = chosen[["step", "edits", "scope", "records", *METRICS, "he_ratio"]].to_string(
        index=False,
        formatters={
            **{name: "{:.1f}".format for name in METRICS},
            "he_ratio": "{:.6f}".format,
        },
        na_rep="-",
    )
    return f"{headline} in percent; step 0 is the unedited model\n{table}\ntables: {folder}"
