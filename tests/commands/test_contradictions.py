"""A run whose stream contradicts itself, end to end."""

import json
from pathlib import Path

import pandas
import pytest

from sphere_bench.cli import main
from tests.run_tables import assert_same_tables, table

SETTINGS = (
    "run.name=run",
    "model.values.steps=1",
    "values.contexts=['{}']",
    "perplexity.tokens=50",
    "edits.batch_size=2",
    "edits.total=6",
    "checkpoint.every=1",
)


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    """Six records; the third overwrites the first, the fifth the fourth."""
    cities = ["Rome", "Oslo", "Rome", "Bern", "Bern", "Lima"]
    targets = ["Peru", "Peru", "Cuba", "Cuba", "Mali", "Iran"]
    records = [
        {
            "prompt": f"The town of {city} lies in",
            "subject": city,
            "target_new": target,
            "ground_truth": "Chad",
            "rephrase_prompt": f"So {city} is in",
        }
        for city, target in zip(cities, targets, strict=True)
    ]
    file = tmp_path / "facts.json"
    file.write_text(json.dumps(records))
    return file


def run(root: Path, facts: Path, *overrides: str) -> Path:
    command = ["run", f"run.root={root}", f"dataset.path={facts}", *SETTINGS, *overrides]
    assert main(command) == 0
    return root / "run"


def counted(folder: Path, scope: str) -> dict[int, int]:
    steps = table(folder, "steps").query(f"scope == '{scope}'")
    return dict(zip(steps["step"], steps["superseded"], strict=True))


def test_superseded_facts_leave_the_means_and_are_counted(
    facts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path, facts)
    said = capsys.readouterr()
    assert "2 records are overwritten by a later edit of the same prompt" in said.err
    assert "seen 2 of 6 records, first 1 of 2" in said.out
    assert counted(folder, "seen") == {0: 0, 1: 0, 2: 1, 3: 2}
    assert counted(folder, "first") == {0: 0, 1: 0, 2: 1, 3: 1}
    # The means are those of the prompts in the table `cases`.
    cases = table(folder, "cases").query("kind == 'rewrite'")
    means = 100 * cases.groupby(["step", "scope"])["success"].mean()
    steps = table(folder, "steps").set_index(["step", "scope"])["efficacy_success"]
    pandas.testing.assert_series_equal(
        steps.sort_index(), means.sort_index(), check_names=False, check_exact=True
    )
    asked = cases[(cases["step"] == 3) & (cases["scope"] == "seen")]["case_id"]
    assert asked.tolist() == ["1", "2", "4", "5"]


def test_going_on_after_a_stop_counts_the_same(facts: Path, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", facts)
    run(tmp_path / "parted", facts, "edits.total=2")
    run(tmp_path / "parted", facts, "edits.total=4")
    assert_same_tables(run(tmp_path / "parted", facts), whole)


def test_published_code_scores_them_and_that_is_another_run(
    facts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path, facts, "evaluation.superseded=score")
    assert counted(folder, "seen") == {0: 0, 1: 0, 2: 1, 3: 2}
    cases = table(folder, "cases").query("step == 3 and scope == 'seen' and kind == 'rewrite'")
    assert cases["case_id"].tolist() == [str(number) for number in range(6)]
    command = ["run", f"run.root={tmp_path}", f"dataset.path={facts}", *SETTINGS]
    assert main(command) == 2
    assert "evaluation.superseded score -> leave_out" in capsys.readouterr().err
