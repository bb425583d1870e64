"""Published numbers: which stand in the file, and beside which runs the report puts them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest

from sphere_bench.cli import main
from sphere_bench.config.composition import groups
from sphere_bench.report import published
from sphere_bench.report.comparing import settings_of
from sphere_bench.report.contents import contents
from sphere_bench.report.finding import find_runs
from sphere_bench.report.page import to_document
from sphere_bench.report.published import poster_gains, published_table
from sphere_bench.report.tables import Table
from tests.report.synthetic import write_run

OWN = published.published_rows()
# The published 15,000 edits in batches of 100 as the 60 in batches of 10 of a synthetic run.
BATCHES_OF_TEN = [
    replace(row, batch_size=row.batch_size // 10, edits=row.edits and row.edits // 250)
    for row in OWN
]
AS_PUBLISHED = {"editor": "alphaedit", "model__name": "llama3-8b", "dataset__name": "zsre"}


@pytest.fixture(autouse=True)
def batches_of_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "published_rows", lambda: BATCHES_OF_TEN)


def table_of(folder: Path) -> Table | None:
    (setting,) = settings_of(find_runs([str(folder)]).runs)
    return published_table(setting)


def test_the_rows_are_those_of_the_papers():
    rows = {(row.dataset, row.edits, row.editor, row.sphere): row.scores for row in OWN}
    assert len(rows) == len(OWN) == 17
    assert tuple(rows["zsre", 15000, "alphaedit", True].values()) == (90.01, 84.67, 45.40)
    # What the report says of the poster: five pairs that differ by 20.5 points, or 590 %.
    pairs = [
        (rows[dataset, 15000, "alphaedit", False][metric], new)
        for dataset in ("zsre", "multi-counterfact")
        for metric, new in rows[dataset, 15000, "alphaedit", True].items()
    ]
    assert len(pairs) == 5
    assert sum(new - old for old, new in pairs) / 5 == pytest.approx(20.5, abs=0.05)
    assert sum(100 * (new - old) / old for old, new in pairs) / 5 == pytest.approx(590, abs=0.5)
    assert tuple(poster_gains().values()) == (43.27, 36.20, 20.96)


def test_every_row_names_what_the_configuration_has():
    options = groups()
    for row in OWN:
        assert row.editor in options["editor"]
        assert row.model in options["model"]
        assert row.dataset in options["dataset"]
        assert row.measure in ("success", "accuracy")
        assert row.scores and all(0 <= value <= 100 for value in row.scores.values())


def test_a_row_stands_beside_the_runs_of_its_setting(tmp_path):
    for seed in (0, 1):
        level = 80.0 + seed
        settings = {**AS_PUBLISHED, "headline": "accuracy"}
        write_run(tmp_path, seed=seed, efficacy=lambda step, level=level: level, **settings)
        write_run(tmp_path, seed=seed, sphere="paper", **settings)
    table = table_of(tmp_path)
    assert table is not None
    assert table.rows["efficacy_published"].tolist() == [86.64, 90.01]
    row = table.rows.iloc[0]
    assert (row["editor"], row["edits"], row["measure"]) == ("alphaedit", 60, "accuracy")
    # 80 and 81 percent success are half of that in accuracy.
    assert row["efficacy_here"] == 40.25
    assert row["efficacy_here_std"] == pytest.approx(0.5**1.5)
    assert row["scope"] == "seen" and row["source"] == "SPHERE, arXiv 2510.01172"
    assert "not measured here" in table.caption
    assert table.groups[1:-1] == [
        (each, 2) for each in ("Efficacy", "Generalization", "Specificity")
    ]


def test_a_longer_run_is_compared_after_as_many_edits(tmp_path):
    write_run(tmp_path, steps=9, efficacy=lambda step: 10.0 * step, **AS_PUBLISHED)
    table = table_of(tmp_path)
    assert table is not None and table.rows["efficacy_here"].tolist() == [30.0]


def test_all_edits_are_preferred_to_a_sample_of_them(tmp_path):
    folder = write_run(tmp_path, **AS_PUBLISHED)
    part = folder / "steps" / "part-00004.parquet"
    frame = pandas.read_parquet(part)
    every = frame[(frame["scope"] == "seen") & (frame["step"] == 6)].copy()
    every["scope"] = "all"
    every["efficacy_accuracy"] = 12.5
    pandas.concat([frame, every]).to_parquet(part, index=False)
    table = table_of(tmp_path)
    assert table is not None
    assert table.rows[["scope", "efficacy_here"]].to_numpy().tolist() == [["all", 12.5]]


@pytest.mark.parametrize(
    "other",
    [
        {"editor": "rome"},
        {"model__name": "gpt-j-6b"},
        {"dataset__name": "counterfact"},
        {"steps": 5},
        {"made": 5},
    ],
)
def test_without_a_match_there_is_no_table(tmp_path, other: dict[str, Any]):
    write_run(tmp_path, **{**AS_PUBLISHED, **other})
    assert table_of(tmp_path) is None


def test_another_batch_size_is_another_setting(tmp_path, monkeypatch):
    of_a_hundred = [replace(row, batch_size=10 * row.batch_size) for row in BATCHES_OF_TEN]
    monkeypatch.setattr(published, "published_rows", lambda: of_a_hundred)
    write_run(tmp_path, **AS_PUBLISHED)
    assert table_of(tmp_path) is None


@pytest.mark.usefixtures("unarranged")
def test_the_page_and_the_terminal_mark_what_was_not_measured_here(tmp_path, capsys):
    folder = write_run(tmp_path, geometry=False, cases=False, **AS_PUBLISHED)
    assert main(["report", str(folder)]) == 0
    found = find_runs([str(folder)])
    page = to_document(contents(found.runs, settings_of(found.runs)), "figures")
    for text in (page, capsys.readouterr().out):
        assert "Published numbers, not measured here" in text and "86.64" in text
    assert "others printed them for this model" in page
