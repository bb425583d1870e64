"""The report's files: one page that needs nothing else, its tables and its figures."""

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote

import pandas
from jinja2 import Environment, PackageLoader, StrictUndefined

from sphere_bench import __version__
from sphere_bench.files import atomic_file
from sphere_bench.report.drawing import Drawing, theme
from sphere_bench.report.items import Note, Section, all_items
from sphere_bench.report.tables import Table, to_markdown, without_markup


def write_report(sections: Sequence[Section], page: Path, runs: pandas.DataFrame) -> None:
    """Write ``page``; beside it its tables as Markdown and CSV and its figures as PNG and PDF.

    Args:
        sections: see ``contents``.
        page: ``NAME.html``; the others are ``NAME.md``, ``NAME-tables/``, ``NAME-figures/`` and
            ``runs.parquet``.
        runs: a row for each run, see ``runs_frame``.
    """
    tables = page.with_name(f"{page.stem}-tables")
    figures = page.with_name(f"{page.stem}-figures")
    for folder in (page.parent, tables, figures):
        folder.mkdir(parents=True, exist_ok=True)
    _write(page, to_html(sections, page.stem))
    _write(page.with_suffix(".md"), to_document(sections, figures.name))
    with atomic_file(page.with_name("runs.parquet")) as temporary:
        runs.to_parquet(temporary, index=False)
    for item in all_items(sections):
        if isinstance(item, Table):
            with atomic_file(tables / f"{item.name}.csv") as temporary:
                item.rows.to_csv(temporary, index=False)
        elif isinstance(item, Drawing):
            item.save(figures)


def to_html(sections: Sequence[Section], title: str) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("sphere_bench.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["kind"] = lambda item, name: type(item).__name__ == name
    return environment.get_template("page.html").render(
        title=title,
        sections=sections,
        theme=theme(),
        version=__version__,
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def to_document(sections: Sequence[Section], figures: str, level: int = 2) -> str:
    """The page in Markdown, with its figures as links; what is folded is left out."""
    parts: list[str] = ["# sphere-bench report"] if level == 2 else []
    for section in sections:
        parts.append(f"{'#' * level} {without_markup(section.title)}")
        for item in section.items:
            if isinstance(item, Note):
                parts.append(without_markup(item.text))
            elif isinstance(item, Table):
                parts += [f"**{without_markup(item.caption)}**", to_markdown(item)]
            elif isinstance(item, Drawing):
                link = quote(f"{figures}/{item.name}.png")
                parts.append(f"![{without_markup(item.alternative)}]({link})")
                parts.append(without_markup(item.caption))
        if section.sections:
            parts.append(to_document(section.sections, figures, level + 1))
    return "\n\n".join(parts) + ("\n" if level == 2 else "")


def _write(file: Path, text: str) -> None:
    with atomic_file(file) as temporary:
        temporary.write_text(text, "utf-8")
