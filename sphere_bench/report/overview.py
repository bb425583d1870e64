"""The report in a terminal: the results and SPHERE's gain, without figures."""

from collections.abc import Iterable

from sphere_bench.data.records import HEADLINES
from sphere_bench.report.comparing import Setting, settings_of
from sphere_bench.report.reading import find_runs
from sphere_bench.report.results import gains_table, headline_table
from sphere_bench.report.tables import Column, Table, to_text


def overview(places: Iterable[str]) -> str:
    """Every setting's arms beside the unedited model, on its main scope, and SPHERE's gains.

    Raises:
        SphereBenchError: see :func:`find_runs`.
    """
    runs = find_runs(places)
    parts = [
        f"{setting.title}: {setting.headline}, mean ± standard deviation over runs\n\n"
        + "\n\n".join(to_text(table) for table in _tables(setting))
        for setting in settings_of(runs)
    ]
    unfinished = [f"{run.name} is unfinished, {run.state}" for run in runs if not run.ended]
    beside = [f"{run.name}: {incident}" for run in runs for incident in run.incidents]
    return "\n\n".join([*parts, *unfinished, *beside])


def _tables(setting: Setting) -> list[Table]:
    scope = setting.scopes[0]
    results = headline_table(setting, scope)
    gains = gains_table(setting, scope, setting.headline)
    columns = [column for column in results.columns if _is_headline(column, setting.headline)]
    narrow = Table(results.name, results.caption, results.rows, columns)
    return [narrow] if gains is None else [narrow, gains]


def _is_headline(column: Column, headline: str) -> bool:
    return not any(
        column.group.startswith(kind.capitalize()) for kind in HEADLINES if kind != headline
    )
