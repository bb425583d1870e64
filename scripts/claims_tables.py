"""The tables of results/claims, made from the tables of its runs and from nothing else."""

import json
import re
import shutil
from collections.abc import Collection, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from scripts.claims_blocks import Found, blocks
from scripts.claims_effects import effects
from sphere_bench.errors import SphereBenchError
from sphere_bench.files import write_json
from sphere_bench.report.comparing import settings_of
from sphere_bench.report.contents import contents
from sphere_bench.report.finding import find_runs
from sphere_bench.report.page import write_report
from sphere_bench.report.reading import Run
from sphere_bench.report.run_tables import runs_frame

#: What is kept of a run: enough for every number of the page, and small.
TABLES = ("steps", "layers", "abilities")
FILES = ("config.yaml", "progress.json", "provenance.json")
EFFECTS = "effects.csv"
#: Their blocks are made: the page, and what stands behind it.
TEXTS = ("README.md", "TABLES.md")
#: So large may the page be with all that belongs to it.
MEGABYTES = 10
_BLOCK = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_PLACE = re.compile(r"(?<![\w./:~-])/(?:home|mnt|root|tmp|Users|work)/[^\s\"']*")


class Names(NamedTuple):
    """Of the runs.

    Attributes:
        planned: of the protocol.
        explored: those of the sweep, and the pair that they stand beside.
        editors: those that a test is planned for.
    """

    planned: Sequence[str]
    explored: Sequence[str]
    editors: Sequence[str]


def write_tables(page: Path, source: Path, names: Names) -> None:
    """Take over the runs that have ended, and make the page's tables, texts and report anew.

    Raises:
        SphereBenchError: no run has ended, or two runs of a pair cannot be compared.
    """
    for run in find_runs([str(source)]).runs:
        if run.ended and run.name in {*names.planned, *names.explored}:
            _keep(source / run.name, page / "runs" / run.name)
    runs = find_runs([str(page / "runs")]).runs
    for name, text in _made(page, runs, names).items():
        (page / name).write_text(text, encoding="utf-8")
    planned = _chosen(runs, names.planned)
    settings = settings_of(planned)
    write_report(contents(planned, settings), page / "report.html", runs_frame(settings))
    # The same as report.md and its figures, and with them half of all that is published.
    for file in (page / "report.html", *page.glob("report-figures/*.pdf")):
        file.unlink()


def check_fit_to_publish(page: Path) -> None:
    """Check that the page is small, and that its runs name no place of this machine.

    Raises:
        SphereBenchError: it is too large, or one of them does.
    """
    size = sum(file.stat().st_size for file in page.rglob("*") if file.is_file())
    if size > MEGABYTES * 1e6:
        raise SphereBenchError(f"{page}: {size / 1e6:.1f} MB, more than {MEGABYTES}: keep less")
    for file in (each for name in FILES for each in page.glob(f"runs/*/{name}")):
        if found := _PLACE.search(file.read_text(encoding="utf-8")):
            raise SphereBenchError(
                f"{file} names {found[0]}: make the runs with --model and --data inside the "
                "project's folder"
            )


def check_tables(page: Path, names: Names) -> list[str]:
    """Where effects.csv and the texts are not what the runs' tables give, a line each.

    Raises:
        SphereBenchError: there are no runs, or a file of the page is not there.
    """
    runs = find_runs([str(page / "runs")]).runs
    try:
        said = {name: (page / name).read_text(encoding="utf-8") for name in (EFFECTS, *TEXTS)}
    except OSError as error:
        raise SphereBenchError(f"{error.filename}: {error.strerror}: make the tables") from error
    found = _made(page, runs, names)
    return [
        f"{name}, line {place}: {before!r} is {after!r} by the tables"
        for name in said
        for place, (before, after) in enumerate(
            zip_longest(said[name].splitlines(), found[name].splitlines(), fillvalue=""), start=1
        )
        if before != after
    ]


def _chosen(runs: Sequence[Run], names: Collection[str]) -> list[Run]:
    return [run for run in runs if run.name in names]


def _made(page: Path, runs: Sequence[Run], names: Names) -> dict[str, str]:
    """The effects, and the texts with their blocks made anew, by the names of their files."""
    planned = _chosen(runs, names.planned)
    settings = settings_of(planned)
    found = Found(
        runs=planned,
        settings=settings,
        effects=effects(settings, names.editors),
        explored=settings_of(_chosen(runs, names.explored)),
    )
    made = blocks(found, names.planned, names.editors)
    texts = {name: (page / name).read_text(encoding="utf-8") for name in TEXTS}
    return {
        EFFECTS: found.effects.to_csv(index=False, float_format="%.6g"),
        **{
            name: _BLOCK.sub(lambda block: f"{block[1]}{made[block[2]]()}\n{block[3]}", text)
            for name, text in texts.items()
        },
    }


def _keep(folder: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in TABLES:
        if (folder / name).is_dir():
            shutil.copytree(folder / name, target / name)
    for name in FILES:
        shutil.copy(folder / name, target / name)
    file = target / "provenance.json"
    provenance = json.loads(file.read_text(encoding="utf-8"))
    # What is not kept is not missing.
    kept = [each for each in provenance["columns"] if each["table"] in TABLES]
    write_json(file, {**provenance, "columns": kept})
