"""A table of the report: its numbers, and how they are written on a page, in Markdown and text."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pandas

Row = Mapping[str, Any]
NONE = "–"
_LATEX = str.maketrans(
    {
        **{each: f"\\{each}" for each in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "−": "$-$",
        "–": "--",
        "’": "'",
        "α": r"$\alpha$",
        "η": r"$\eta$",
        "<": "$<$",
        ">": "$>$",
    }
)


@dataclass(frozen=True)
class Column:
    """A column as it is read.

    Attributes:
        header: its name, with the unit.
        text: what a row's cell says.
        group: a header over several columns.
        numeric: aligned on the right.
    """

    header: str
    text: Callable[[Row], str]
    group: str = ""
    numeric: bool = True

    @property
    def full_header(self) -> str:
        return f"{self.group}: {self.header}" if self.group else self.header


@dataclass(frozen=True)
class Table:
    """Numbers, and how to read them.

    Attributes:
        name: of its CSV file.
        caption: what it shows.
        rows: the numbers; CSV has all of them, a page what the columns say.
        columns: in their order.
        emphasized: rows that look different, such as the unedited model's.
    """

    name: str
    caption: str
    rows: pandas.DataFrame
    columns: Sequence[Column]
    emphasized: frozenset[int] = frozenset()

    @property
    def cells(self) -> list[list[str]]:
        return [
            [column.text(row) for column in self.columns]
            for row in cast(list[Row], self.rows.to_dict("records"))
        ]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The headers over the headers, with how many columns each spans; empty without any."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return spans if any(group for group, _ in spans) else []


def to_markdown(table: Table) -> str:
    """The table as GitHub's Markdown, without its caption."""
    lines = [
        [column.full_header for column in table.columns],
        ["---:" if column.numeric else "---" for column in table.columns],
        *table.cells,
    ]
    return "\n".join(
        f"| {' | '.join(without_markup(cell).replace('|', chr(92) + '|') for cell in line)} |"
        for line in lines
    )


def without_markup(text: str) -> str:
    """Markdown that shows ``text`` on one line, tags included, instead of obeying them."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", " ".join(text.splitlines()))


def to_latex(table: Table) -> str:
    """The table as LaTeX for the package booktabs, with its caption."""
    above, rules, start = [], [], 1
    for group, span in table.groups:
        above.append(f"\\multicolumn{{{span}}}{{c}}{{{_latex(group)}}}")
        if group:
            rules.append(f"\\cmidrule(lr){{{start}-{start + span - 1}}}")
        start += span
    lines = [[column.header for column in table.columns], *table.cells]
    header, *body = [" & ".join(map(_latex, line)) + r" \\" for line in lines]
    alignment = "".join("r" if column.numeric else "l" for column in table.columns)
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_latex(table.caption)}}}",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            *([" & ".join(above) + r" \\", " ".join(rules)] if above else []),
            header,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def to_csv(table: Table) -> str:
    """All numbers of the table, under its caption as a comment."""
    return f"# {' '.join(table.caption.splitlines())}\n{table.rows.to_csv(index=False)}".rstrip()


def to_text(table: Table) -> str:
    """The table for a terminal, under its caption."""
    lines = [[column.header for column in table.columns], *table.cells]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    above, start = [], 0
    for group, span in table.groups:
        above.append(group.center(sum(widths[start : start + span]) + 2 * (span - 1)))
        start += span
    written = [
        "  ".join(
            cell.rjust(width) if column.numeric else cell.ljust(width)
            for cell, width, column in zip(line, widths, table.columns, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([table.caption, *filter(None, ["  ".join(above).rstrip()]), *written])


def label(header: str, key: str, group: str = "") -> Column:
    """A column of words."""
    return Column(header, lambda row: str(row[key]), group, numeric=False)


def number(header: str, key: str, digits: int = 1, group: str = "", sign: bool = False) -> Column:
    """A column of numbers; what does not exist is a dash."""
    return Column(header, lambda row: write_number(row[key], digits, sign), group)


def spread(header: str, key: str, digits: int = 1, group: str = "", sign: bool = False) -> Column:
    """A column of means and, where there are several runs, their standard deviation."""

    def text(row: Row) -> str:
        deviation = row[f"{key}_std"]
        mean = write_number(row[key], digits, sign)
        return mean if is_missing(deviation) else f"{mean} ± {write_number(deviation, digits)}"

    return Column(header, text, group)


def write_number(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """``value`` with so many digits after the point, more where all of them would be zero."""
    if is_missing(value):
        return NONE
    assert value is not None
    rounded = round(value, digits) + 0.0  # no minus zero
    plus = "+" if sign else ""
    text = f"{value:{plus}.1g}" if value and not rounded else f"{rounded:{plus}.{digits}f}"
    return text.replace("-", "−")


def with_interval(mean: float, low: float, high: float, digits: int = 1) -> str:
    """A signed number and its interval, as far as there is one."""
    signed = [write_number(value, digits, sign=True) for value in (mean, low, high)]
    return signed[0] if is_missing(low) else f"{signed[0]} [{signed[1]}, {signed[2]}]"


def write_p_value(value: float) -> str:
    return NONE if is_missing(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _latex(text: str) -> str:
    return text.translate(_LATEX)


def is_missing(value: float | None) -> bool:
    return value is None or math.isnan(value)
