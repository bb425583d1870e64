"""The report in a terminal: the results and SPHERE's gain, without figures."""

import textwrap
from collections.abc import Callable, Mapping, Sequence

from sphere_bench.report.comparing import Setting, settings_of
from sphere_bench.report.finding import Found
from sphere_bench.report.gain_tables import gains_table
from sphere_bench.report.in_words import in_words
from sphere_bench.report.published import published_table
from sphere_bench.report.score_tables import headline_table
from sphere_bench.report.tables import Table, to_csv, to_latex, to_markdown, to_text

#: Of sentences in the terminal.
WIDTH = 100


def _markdown(table: Table) -> str:
    return f"**{table.caption}**\n\n{to_markdown(table)}"


FORMATS: Mapping[str, Callable[[Table], str]] = {
    "text": to_text,
    "markdown": _markdown,
    "latex": to_latex,
    "csv": to_csv,
}


def overview(found: Found, form: str = "text") -> str:
    """Every setting's arms beside the unedited model, SPHERE's gains, and published numbers.

    Args:
        found: the runs.
        form: one of :data:`FORMATS`; all but ``text`` give the tables alone.
    """
    written = []
    for setting in settings_of(found.runs):
        tables = [FORMATS[form](table) for table in _tables(setting)]
        if form == "text":
            about = f"{setting.title}: {setting.headline}, mean ± standard deviation over runs"
            words = filter(None, [textwrap.fill(in_words(setting), WIDTH)])
            tables = [about, *words, *(tables or ["no headline score is recorded"])]
        written += tables
    return "\n\n".join(written)


def remarks(found: Found) -> list[str]:
    """What a reader must know beside the numbers."""
    return [
        *(f"{run.name} is unfinished, {run.state}" for run in found.runs if not run.ended),
        *(f"{run.name}: {incident}" for run in found.runs for incident in run.incidents),
        *(f"left out: {reason}" for reason in found.damaged),
    ]


def _tables(setting: Setting) -> Sequence[Table]:
    if not (setting.scopes and setting.metrics):
        return []
    scope = setting.scopes[0]
    found = (
        headline_table(setting, scope, [setting.headline]),
        gains_table(setting, scope, setting.headline),
        published_table(setting),
    )
    return [table for table in found if table is not None]
