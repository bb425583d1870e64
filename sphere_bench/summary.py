"""The table that ends a run: the unedited model beside the last evaluated step."""

from pathlib import Path

import pandas

from sphere_bench.evaluation.metrics import METRICS
from sphere_bench.recording import Progress, read_progress, read_table


def summarize_run(folder: Path, headline: str) -> str:
    """What happened, scope by scope, and where the files are.

    Args:
        folder: the run's folder, with at least one recorded step.
        headline: what the metrics are, ``success`` or ``accuracy``.
    """
    every = read_table(folder, "steps")
    steps = every[every["records"] > 0]
    chosen = steps[steps["step"].isin([0, steps["step"].max()])]
    table = chosen[["step", "edits", "scope", "records", *METRICS, "he_ratio"]].to_string(
        index=False,
        formatters={
            **{name: "{:.1f}".format for name in METRICS},
            "he_ratio": "{:.6f}".format,
        },
        na_rep="-",
    )
    lines = [f"{headline} in percent; step 0 is the unedited model", table]
    return "\n".join([*lines, *incidents(read_progress(folder), every), f"tables: {folder}"])


def incidents(progress: Progress | None, steps: pandas.DataFrame) -> list[str]:
    """What a reader of the tables must know: batches that were left out, a run that ended early.

    Args:
        progress: of the run.
        steps: its steps table.
    """
    lines = []
    written = steps["nonfinite"] & ~steps["skipped"]
    for what, chosen in (("skipped", steps["skipped"]), ("not finite but written", written)):
        if chosen.any():
            numbers = map(str, sorted(set(steps.loc[chosen, "step"])))
            lines.append(f"batches {what} (numerics.on_nonfinite): steps {', '.join(numbers)}")
    if progress is not None and progress.state == "collapsed":
        lines.append(
            f"collapsed after step {progress.step}, {progress.edits} of {progress.total} edits: "
            "the thresholds of collapse ended the run"
        )
    return lines
