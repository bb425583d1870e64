"""The report's files: one page that needs nothing else, its tables and its figures."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from sphere_bench import __version__
from sphere_bench.files import atomic_file
from sphere_bench.report.contents import Folded, Item, Note, Section
from sphere_bench.report.drawing import Drawing, theme
from sphere_bench.report.tables import Table, to_markdown


def write_report(sections: Sequence[Section], page: Path) -> None:
    """Write ``page``; beside it its tables as Markdown and CSV and its figures as PNG and PDF.

    Args:
        sections: see ``contents``.
        page: ``NAME.html``; the others are ``NAME.md``, ``NAME-tables/`` and ``NAME-figures/``.
    """
    tables = page.with_name(f"{page.stem}-tables")
    figures = page.with_name(f"{page.stem}-figures")
    for folder in (page.parent, tables, figures):
        folder.mkdir(parents=True, exist_ok=True)
    _write(page, to_html(sections, page.stem))
    _write(page.with_suffix(".md"), to_document(sections, figures.name))
    for item in _all_items(sections):
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
        parts.append(f"{'#' * level} {section.title}")
        for item in section.items:
            if isinstance(item, Note):
                parts.append(item.text)
            elif isinstance(item, Table):
                parts += [f"**{item.caption}**", to_markdown(item)]
            elif isinstance(item, Drawing):
                parts.append(f"![{item.alternative}]({figures}/{item.name}.png)\n\n{item.caption}")
        if section.sections:
            parts.append(to_document(section.sections, figures, level + 1))
    return "\n\n".join(parts) + ("\n" if level == 2 else "")


def _all_items(sections: Sequence[Section]) -> Iterator[Item]:
    for section in sections:
        yield from _unfolded(section.items)
        yield from _all_items(section.sections)


def _unfolded(items: Sequence[Item]) -> Iterator[Item]:
    for item in items:
        if isinstance(item, Folded):
            yield from _unfolded(item.items)
        else:
            yield item


def _write(file: Path, text: str) -> None:
    with atomic_file(file) as temporary:
        temporary.write_text(text, "utf-8")
