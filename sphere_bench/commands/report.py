"""`sphere-bench report`: what happened in one or several runs, from their folders alone."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sphere_bench.commands.arguments import Parser
from sphere_bench.errors import SphereBenchError

if TYPE_CHECKING:
    from sphere_bench.report.finding import Found

DESCRIPTION = """\
Read run folders, finished or not, and show what happened: a table in the terminal, or with --out a
page with all tables and figures. Files and folders that are no run are passed over.
"""


def main(arguments: Sequence[str]) -> int:
    """The verb: a table of the runs, or their report.

    Raises:
        SphereBenchError: the arguments are wrong, or no folder is a run.
    """
    # Its libraries take most of the start: only here.
    from sphere_bench.report.overview import FORMATS

    parser = Parser(prog="sphere-bench report", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder, one that holds runs, or a pattern"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.html",
        help="write the page here, and beside it FILE.md, FILE-tables/, FILE-figures/ and "
        "runs.parquet",
    )
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        help="of the tables in the terminal: text with all that there is to say, or the tables "
        "alone",
    )
    try:
        options = parser.parse_args(list(arguments))
    except SystemExit as done:  # how argparse ends after --help
        return int(done.code or 0)
    if options.out is not None:
        _check(options.out)
        if options.format is not None:
            raise SphereBenchError("--format is of the tables in the terminal: leave out --out")
    _report(options.runs, options.out, options.format or "text")
    return 0


def _report(places: Sequence[str], page: Path | None, form: str) -> None:
    from sphere_bench.report.finding import find_runs
    from sphere_bench.report.overview import overview, remarks

    found = find_runs(places)
    for reason in found.passed_over:
        print(f"passed over: {reason}", file=sys.stderr)
    if page is None:
        print(overview(found, form))
    else:
        _write(found, page)
    aside = sys.stdout if page is None and form == "text" else sys.stderr
    if said := remarks(found):
        print("", *said, sep="\n", file=aside)


def _write(found: "Found", page: Path) -> None:
    # Drawing takes most of the time.
    from sphere_bench.report.comparing import settings_of
    from sphere_bench.report.contents import contents
    from sphere_bench.report.page import write_report
    from sphere_bench.report.run_tables import runs_frame

    settings, count = settings_of(found.runs), len(found.runs)
    write_report(contents(found.runs, settings, found.damaged), page, runs_frame(settings))
    print(f"report of {count} {'run' if count == 1 else 'runs'}: {page}")


def _check(page: Path) -> None:
    if page.suffix != ".html":
        raise SphereBenchError(f"--out {page}: name a file that ends in .html")
    if page.is_dir():
        raise SphereBenchError(f"--out {page} is a folder: name a file in it")
