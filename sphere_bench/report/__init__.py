"""`sphere-bench report`: what happened in one or several runs, from their folders alone."""

from collections.abc import Sequence
from pathlib import Path

from sphere_bench.arguments import Parser
from sphere_bench.errors import SphereBenchError

DESCRIPTION = """\
Read run folders, finished or not, and show what happened: a table in the terminal, or with --out a
page with all tables and figures.
"""


def main(arguments: Sequence[str]) -> int:
    """The verb: a table of the runs, or their report.

    Raises:
        SphereBenchError: the arguments are wrong, or a folder is no run.
    """
    parser = Parser(prog="sphere-bench report", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder, one that holds runs, or a pattern"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.html",
        help="write the page here, and beside it FILE.md, FILE-tables/ and FILE-figures/",
    )
    try:
        options = parser.parse_args(list(arguments))
    except SystemExit as done:  # how argparse ends after --help
        return int(done.code or 0)
    if options.out is None:
        from sphere_bench.report.overview import overview

        print(overview(options.runs))
    else:
        _check(options.out)
        # Drawing takes most of the time, and its libraries most of the start.
        from sphere_bench.report.comparing import settings_of
        from sphere_bench.report.contents import contents
        from sphere_bench.report.page import write_report
        from sphere_bench.report.reading import find_runs

        runs = find_runs(options.runs)
        write_report(contents(runs, settings_of(runs)), options.out)
        print(f"report of {len(runs)} {'run' if len(runs) == 1 else 'runs'}: {options.out}")
    return 0


def _check(page: Path) -> None:
    if page.suffix != ".html":
        raise SphereBenchError(f"--out {page}: name a file that ends in .html")
    if page.is_dir():
        raise SphereBenchError(f"--out {page} is a folder: name a file in it")
