import math

import pandas
import pytest

from sphere_bench.report.tables import (
    Table,
    label,
    number,
    spread,
    to_markdown,
    to_text,
    write_number,
    write_p_value,
)


@pytest.mark.parametrize(
    "value, digits, sign, text",
    [
        (12.345, 1, False, "12.3"),
        (-12.345, 2, True, "−12.35"),
        (3, 0, True, "+3"),
        (-0.0, 1, False, "0.0"),
        (15000, 0, False, "15000"),
        # What rounding would hide.
        (0.00002, 2, False, "2e−05"),
        (0.0213, 1, True, "+0.02"),
        (math.nan, 1, False, "–"),
        (None, 1, False, "–"),
    ],
)
def test_numbers(value, digits, sign, text):
    assert write_number(value, digits, sign) == text


@pytest.mark.parametrize("value, text", [(0.0004, "< 0.001"), (0.04, "0.040"), (math.nan, "–")])
def test_p_values(value, text):
    assert write_p_value(value) == text


@pytest.fixture
def table() -> Table:
    rows = pandas.DataFrame(
        {
            "name": ["a|b", "c"],
            "score": [1.0, 20.0],
            "score_std": [math.nan, 0.5],
            "edits": [5, 100],
        }
    )
    columns = [
        label("Name", "name"),
        spread("Score", "score", group="Success, %"),
        number("Edits", "edits", 0),
    ]
    return Table("scores", "Some scores", rows, columns)


def test_markdown(table):
    assert to_markdown(table).splitlines() == [
        "| Name | Success, %: Score | Edits |",
        "| --- | ---: | ---: |",
        r"| a\|b | 1.0 | 5 |",
        "| c | 20.0 ± 0.5 | 100 |",
    ]


def test_text(table):
    assert to_text(table).splitlines() == [
        "Some scores",
        "      Success, %",
        "Name       Score  Edits",
        "a|b          1.0      5",
        "c     20.0 ± 0.5    100",
    ]


def test_groups_span_their_columns(table):
    assert table.groups == [("", 1), ("Success, %", 1), ("", 1)]
