"""General ability in the report: edited beside unedited, and what tells nothing."""

import math
from collections.abc import Mapping
from pathlib import Path

import pandas
import pytest

from sphere_bench.report.ability_tables import Ability, ability_change, ability_table
from sphere_bench.report.comparing import Setting, settings_of
from sphere_bench.report.contents import contents
from sphere_bench.report.finding import find_runs
from sphere_bench.report.in_words import in_words
from tests.report.synthetic import BATCH, write_run

UNEDITED = {"arc": 0.8, "coin": 0.55}
CHANCES = {"arc": 0.25, "coin": 0.5}


def make_run(root: Path, seed: int, edited: Mapping[str, float], sphere: str = "off") -> Path:
    """A run that was asked two tasks, with a standard error of 0.04, at steps 0, 3 and 6.

    Besides ``acc`` a task has ``f1``, of which no chance is known, and ``mcc``, well above its own.
    """
    folder = write_run(root, seed=seed, sphere=sphere, geometry=False, cases=False)
    rows = [
        {
            "step": step,
            "edits": BATCH * step,
            "task": task,
            "metric": metric,
            "value": {"acc": value, "f1": 0.1, "mcc": 0.3}[metric],
            "stderr": 0.04,
            "chance": {"acc": CHANCES[task], "f1": math.nan, "mcc": 0.0}[metric],
            "items": 100,
            "seconds": 1.0,
        }
        for step, values in ((0, UNEDITED), (3, UNEDITED), (6, edited))
        for task, value in values.items()
        for metric in ("acc", "f1", "mcc")
    ]
    (folder / "abilities").mkdir(exist_ok=True)
    pandas.DataFrame(rows).to_parquet(folder / "abilities" / "part-00000.parquet", index=False)
    return folder


def setting_of(root: Path) -> Setting:
    (setting,) = settings_of(find_runs([str(root)]).runs)
    return setting


@pytest.mark.parametrize(
    "value, stderr, chance, nothing",
    [
        # Two standard errors above 0.5 is 0.58.
        (0.58, 0.04, 0.5, True),
        (0.59, 0.04, 0.5, False),
        # Below chance there is nothing to lose either.
        (0.1, 0.04, 0.5, True),
        (0.51, math.nan, 0.5, False),
        (0.5, math.nan, 0.5, True),
        # Where chance is not known, nothing can be said.
        (0.0, 0.04, math.nan, False),
    ],
)
def test_a_task_tells_nothing_within_two_standard_errors_of_chance(
    value: float, stderr: float, chance: float, nothing: bool
) -> None:
    assert Ability(0, value, stderr, chance, 100).tells_nothing is nothing


def test_edited_and_unedited_stand_beside_each_other_with_intervals(tmp_path: Path) -> None:
    make_run(tmp_path, 0, {"arc": 0.7, "coin": 0.5})
    table = ability_table(setting_of(tmp_path))
    assert table is not None
    assert table.rows[["task", "metric"]].to_numpy().tolist() == [
        ["arc", "acc"],
        ["arc", "f1"],
        ["arc", "mcc"],
        ["coin", "acc"],
        ["coin", "f1"],
        ["coin", "mcc"],
    ]
    cells = [dict(zip([c.header for c in table.columns], row, strict=True)) for row in table.cells]
    # 1.96 x 0.04 = 0.0784.
    assert cells[0]["Unedited"] == "0.800 [0.722, 0.878]"
    assert cells[0]["Edited"] == "0.700 [0.622, 0.778]"
    assert [row["Remark"] for row in cells] == ["", "", "", "tells nothing", "", ""]
    assert (cells[0]["Edits"], cells[0]["Items"], cells[0]["Chance"]) == ("60", "100", "0.250")


def test_with_several_seeds_the_interval_is_over_runs(tmp_path: Path) -> None:
    for seed, value in enumerate((0.6, 0.7, 0.8)):
        make_run(tmp_path, seed, {"arc": value, "coin": 0.5})
    table = ability_table(setting_of(tmp_path))
    assert table is not None
    row = table.rows.iloc[0]
    # 4.303 x 0.1 / sqrt(3).
    assert row["edited"] == pytest.approx(0.7)
    assert row["edited_high"] - row["edited"] == pytest.approx(0.2484, abs=1e-4)
    assert row["runs"] == 3


def test_only_tasks_that_tell_something_are_in_the_words(tmp_path: Path) -> None:
    make_run(tmp_path, 0, {"arc": 0.7, "coin": 0.1})
    make_run(tmp_path, 0, {"arc": 0.75, "coin": 0.0}, sphere="paper")
    setting = setting_of(tmp_path)
    changes = {arm.variant: ability_change(arm.runs[0]) for arm in setting.arms}
    assert changes == pytest.approx({"without SPHERE": -10, "with SPHERE": -5})
    assert (
        "General ability, its mean change over the tasks that tell something: best with memit with "
        "SPHERE (−5.0 points, before memit without SPHERE at −10.0)."
    ) in in_words(setting)


@pytest.mark.usefixtures("unarranged")
def test_the_report_has_a_section_where_something_was_asked(tmp_path: Path) -> None:
    make_run(tmp_path / "asked", 0, {"arc": 0.7, "coin": 0.5})
    runs = find_runs([str(tmp_path / "asked")]).runs
    titles = [section.title for section in contents(runs, settings_of(runs))[1].sections]
    assert "General ability" in titles
    write_run(tmp_path / "others", geometry=False, cases=False)
    assert ability_table(setting_of(tmp_path / "others")) is None
