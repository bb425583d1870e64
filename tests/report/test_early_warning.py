"""Which signal warns of a collapse, against thresholds that other runs have fixed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest

from sphere_bench.report.comparing import Setting, settings_of
from sphere_bench.report.early_warning import early_warning_table, too_few_runs
from sphere_bench.report.finding import find_runs
from tests.report.synthetic import write_run

STEPS = 8


def make_run(
    root: Path, seed: int, drift: Callable[[int], float], collapses: int | None = None
) -> None:
    """A run whose efficacy is 90 until it collapses, and whose layer 2 drifts as given."""

    def efficacy(step: int) -> float:
        return 10.0 if collapses is not None and step >= collapses else 90.0

    folder = write_run(root, seed=seed, steps=STEPS, efficacy=efficacy, geometry=False, cases=False)
    for part in (folder / "layers").iterdir():
        frame = pandas.read_parquet(part)
        moving = frame["layer"] == 2
        frame["drift"] = 0.0
        frame.loc[moving, "drift"] = frame.loc[moving, "step"].map(drift).astype(float)
        frame.to_parquet(part, index=False)


def setting_of(root: Path) -> Setting:
    (setting,) = settings_of(find_runs([str(root)]).runs)
    return setting


def drift_row(root: Path) -> "pandas.Series[Any]":
    table = early_warning_table(setting_of(root))
    assert table is not None
    return table.rows.set_index("signal").loc["drift"]


def test_a_warning_is_counted_from_the_threshold_of_the_other_runs(tmp_path: Path) -> None:
    # Those that stand reach 0.4 and 0.5; the third one's 0.6 is a false alarm.
    for seed, highest in enumerate((0.4, 0.5, 0.6)):
        make_run(tmp_path, seed, lambda step, highest=highest: highest * step / STEPS)
    # Above 0.6 from step 4 on, and collapsed at step 7.
    make_run(tmp_path, 3, lambda step: 0.15 * step if step > 3 else 0.0, collapses=7)
    # It collapses without a warning: it passes the threshold at the collapse point.
    make_run(tmp_path, 4, lambda step: 0.9 if step >= 5 else 0.1, collapses=5)
    row = drift_row(tmp_path)
    assert (row["warned"], row["collapsed"]) == (1, 2)
    # 0.15 x 4 is 0.6 and not above it: step 5, two steps ahead of step 7.
    assert row["lead"] == 2
    assert (row["false_alarms"], row["judged"]) == (1, 3)
    assert (row["threshold_low"], row["threshold_high"]) == (0.5, 0.6)
    assert too_few_runs(setting_of(tmp_path)) is None
    table = early_warning_table(setting_of(tmp_path))
    assert table is not None
    assert table.cells[1][1:] == ["0.500 to 0.600", "1 of 2", "2", "1 of 3"]


def test_a_collapsed_run_fixes_no_threshold(tmp_path: Path) -> None:
    make_run(tmp_path, 0, lambda step: 0.1)
    make_run(tmp_path, 1, lambda step: 0.2)
    make_run(tmp_path, 2, lambda step: 5.0, collapses=8)
    make_run(tmp_path, 3, lambda step: 0.3 * step, collapses=6)
    row = drift_row(tmp_path)
    # Both pass 0.2 at step 1, long before steps 8 and 6.
    assert (row["warned"], row["collapsed"]) == (2, 2)
    assert (row["lead"], row["lead_low"], row["lead_high"]) == (6, 5, 7)
    # Each of the two that stand has but one other that does.
    assert row["judged"] == 0
    assert "one too few for false alarms" in str(too_few_runs(setting_of(tmp_path)))


@pytest.mark.parametrize(
    "collapses, said",
    [
        ([None], "none collapsed, so there is nothing to warn of; 1 did not collapse"),
        ([None, 4, 5], "Too few runs: of 3, 1 did not collapse, of which a threshold needs 2."),
        ([None] * 3, "Too few runs: of 3, none collapsed, so there is nothing to warn of."),
    ],
)
def test_too_few_runs_are_said_to_be_too_few(
    tmp_path: Path, collapses: list[int | None], said: str
) -> None:
    for seed, collapse in enumerate(collapses):
        make_run(tmp_path, seed, lambda step: 0.1 * step, collapse)
    assert said in str(too_few_runs(setting_of(tmp_path)))
    table = early_warning_table(setting_of(tmp_path))
    assert table is not None
    if len(collapses) < 2:
        assert table.cells[1][1:] == ["–", "–", "–", "–"]


def test_the_energy_warns_by_the_size_of_its_change(tmp_path: Path) -> None:
    for seed, ratio in enumerate((0.9, 1.05, 1.02)):
        efficacy = 10.0 if ratio == 0.9 else 90.0
        write_run(
            tmp_path,
            seed=seed,
            steps=STEPS,
            efficacy=lambda step, efficacy=efficacy: efficacy if step > 4 else 90.0,
            energy=lambda step, ratio=ratio: ratio if step else 1.0,
        )
    table = early_warning_table(setting_of(tmp_path))
    assert table is not None
    row = table.rows.set_index("signal").loc["he_ratio"]
    # It falls by a tenth at step 1 and collapses at step 5; the others change by 0.05 at most.
    assert row["threshold"] == pytest.approx(0.05, abs=1e-12)
    assert (row["warned"], row["lead"]) == (1, 4)


def test_without_signals_there_is_no_table(tmp_path: Path) -> None:
    write_run(tmp_path, energy=None)
    assert early_warning_table(setting_of(tmp_path)) is None
