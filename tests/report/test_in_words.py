"""What the report says in words: which editor keeps what, and how certain that is."""

from pathlib import Path

import pandas
import pytest

from sphere_bench.cli import main
from sphere_bench.report.comparing import settings_of
from sphere_bench.report.contents import contents
from sphere_bench.report.finding import find_runs
from sphere_bench.report.in_words import in_words
from sphere_bench.report.items import Note
from tests.report.synthetic import MEASURES, write_run


def words_of(root: Path) -> str:
    (setting,) = settings_of(find_runs([str(root)]).runs)
    return in_words(setting)


def test_with_one_seed_the_order_has_no_interval_and_may_be_chance(tmp_path: Path) -> None:
    write_run(tmp_path, efficacy=lambda step: 60.0)
    write_run(tmp_path, sphere="paper", efficacy=lambda step: 80.0)
    words = words_of(tmp_path)
    assert words.startswith(
        "After 60 edits, scope seen. By success, memit with SPHERE is highest in efficacy (80.0 %, "
        "before memit without SPHERE at 60.0), generalization (80.0 %, "
    )
    assert "By accuracy, memit with SPHERE is highest in efficacy (40.0 %, before" in words
    assert words.endswith("One seed has no interval, and chance may have made the order.")


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    # The seeds differ by tens of points, the editors by 1, 2 and 3 on each of them.
    for seed, level in enumerate((20.0, 50.0, 80.0)):
        write_run(tmp_path, seed=seed, efficacy=lambda step, level=level: level)
        gain = level + 1 + seed
        write_run(tmp_path, sphere="paper", seed=seed, efficacy=lambda step, gain=gain: gain)
    words = words_of(tmp_path)
    # Student's t with two degrees of freedom: 2 +- 4.303 x 1 / sqrt(3) leaves zero in.
    assert "not told apart from memit without SPHERE: +2.0 [−0.5, +4.5] points)" in words
    assert "paired by seed" in words
    for seed, level in enumerate((20.0, 50.0, 80.0)):
        gain = level + 2 + 0.1 * seed
        write_run(tmp_path, sphere="paper", seed=seed, efficacy=lambda step, gain=gain: gain)
    words = words_of(tmp_path)
    # 2.1 +- 4.303 x 0.1 / sqrt(3).
    assert "ahead of memit without SPHERE by +2.1 [+1.9, +2.3] points" in words


def test_generation_has_words_of_its_own_and_different_lengths_are_not_compared(
    tmp_path: Path,
) -> None:
    measures = {**MEASURES, "generation": 0.1}
    for editor in ("memit", "rect"):
        write_run(tmp_path, editor=editor, measures=measures, efficacy=lambda step: 70.0)
    words = words_of(tmp_path)
    assert words.startswith("After 60 edits, scope seen.")
    highest = "By generation, memit without SPHERE is highest in efficacy (7.0 %, tied with rect"
    assert highest in words
    write_run(tmp_path, editor="prune", made=3, measures=measures)
    assert words_of(tmp_path) == "Not compared in words: the runs have made 30 to 60 edits."


def test_each_score_has_its_own_best_and_one_editor_alone_has_no_others(tmp_path: Path) -> None:
    write_run(tmp_path, efficacy=lambda step: 60.0)
    assert "By success, memit without SPHERE has efficacy (60.0 %), gen" in words_of(tmp_path)
    assert words_of(tmp_path).endswith("One seed has no interval.")
    better = write_run(tmp_path, editor="rect", efficacy=lambda step: 50.0)
    for part in (better / "steps").iterdir():
        frame = pandas.read_parquet(part)
        frame["specificity_success"] = 75.0
        frame.to_parquet(part, index=False)
    assert (
        "score (60.0 %, before rect without SPHERE at 50.0); rect without SPHERE is highest in "
        "specificity (75.0 %, before memit without SPHERE at 60.0)."
    ) in words_of(tmp_path)


@pytest.mark.usefixtures("unarranged")
def test_page_and_terminal_begin_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path, efficacy=lambda step: 60.0, geometry=False, cases=False)
    assert main(["report", str(folder)]) == 0
    runs = find_runs([str(folder)]).runs
    part = contents(runs, settings_of(runs))[1]
    assert isinstance(part.items[0], Note)
    for text in (part.items[0].text, " ".join(capsys.readouterr().out.split())):
        assert "After 60 edits, scope seen. By success, memit without SPHERE has efficacy" in text
