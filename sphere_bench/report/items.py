"""What a report is made of: sections of paragraphs, tables and figures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

from sphere_bench.report.drawing import Drawing
from sphere_bench.report.tables import Table


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Source:
    """Text as it is."""

    text: str


@dataclass(frozen=True)
class Folded:
    """What few readers want, behind a line that opens it."""

    summary: str
    items: Sequence["Item"]


Item: TypeAlias = Note | Source | Table | Drawing | Folded
Named = TypeVar("Named", Table, Drawing)


@dataclass(frozen=True)
class Section:
    """A heading and what is below it.

    Attributes:
        name: of its anchor.
        title: its heading.
        items: in their order.
        sections: below it.
    """

    name: str
    title: str
    items: Sequence[Item] = ()
    sections: Sequence["Section"] = field(default=())


def all_items(sections: Sequence[Section]) -> Iterator[Item]:
    """Every item of the sections, what is folded included."""
    for section in sections:
        yield from _unfolded(section.items)
        yield from all_items(section.sections)


def with_prefix(section: Section, prefix: str) -> Section:
    """The section with ``prefix`` before every name in it: names are unique on a page."""
    return replace(
        section,
        name=f"{prefix}{section.name}",
        items=[_item_with_prefix(item, prefix) for item in section.items],
        sections=[with_prefix(each, prefix) for each in section.sections],
    )


def _item_with_prefix(item: Item, prefix: str) -> Item:
    def named(item: Named) -> Named:
        return replace(item, name=f"{prefix}{item.name}")

    if isinstance(item, Folded):
        return replace(item, items=[_item_with_prefix(each, prefix) for each in item.items])
    if isinstance(item, Table):
        return named(item)
    return named(item) if isinstance(item, Drawing) else item


def _unfolded(items: Sequence[Item]) -> Iterator[Item]:
    for item in items:
        if isinstance(item, Folded):
            yield from _unfolded(item.items)
        else:
            yield item
