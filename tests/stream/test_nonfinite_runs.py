"""Runs whose numbers go wrong, on the bundled tiny GPT-2: what the tables and the user are told."""

import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from sphere_bench.cli import main
from sphere_bench.editing.solvers import LeastSquares
from sphere_bench.stream.early_stopping import Collapse
from tests.commands.test_run import QUICK
from tests.few_prompts import few_prompts
from tests.run_tables import assert_same_tables, table

FOUR_STEPS = (
    *(few_prompts(), *QUICK, "run.name=run"),
    *("edits.total=8", "edits.batch_size=2", "checkpoint.every=1"),
)
# Fine-tuning at a learning rate that destroys the model within a batch.
DESTRUCTIVE = (*FOUR_STEPS, "editor=ft", "editor.method.learning_rate=0.5")


def run(root: Path, *overrides: str) -> int:
    return main(["run", f"run.root={root}", *overrides])


def state(root: Path) -> tuple[str, int]:
    progress = json.loads((root / "run" / "progress.json").read_text())
    return progress["state"], progress["step"]


@pytest.fixture
def broken_batch(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the update of the given step's last layer, counted from 1, NaN."""

    def plant(step: int) -> None:
        solve, calls = LeastSquares.solve, []

        def solving(self: LeastSquares, layer: int, keys: Tensor, residual: Tensor) -> Tensor:
            calls.append(layer)
            update = solve(self, layer, keys, residual)
            return update * math.nan if len(calls) == 3 * step else update

        monkeypatch.setattr(LeastSquares, "solve", solving)

    return plant


@pytest.mark.parametrize("editor", ["memit", "alphaedit"])
def test_a_run_stops_before_the_batch_and_can_go_on(
    editor: str,
    tmp_path: Path,
    broken_batch: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = (*FOUR_STEPS, f"editor={editor}")
    assert run(tmp_path / "whole", *command) == 0
    broken_batch(3)
    assert run(tmp_path / "stopped", *command) == 2
    monkeypatch.undo()
    assert "error: the update of layer 2 is not finite, and the" in capsys.readouterr().err
    folder = tmp_path / "stopped" / "run"
    assert state(folder.parent) == ("interrupted", 2)
    assert table(folder, "steps")["step"].max() == 2
    assert run(tmp_path / "stopped", *command) == 0
    assert_same_tables(folder, tmp_path / "whole" / "run")


def test_a_skipped_batch_is_in_the_tables_and_in_the_summary(
    tmp_path: Path, broken_batch: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    broken_batch(2)
    assert run(tmp_path, *FOUR_STEPS, "numerics.on_nonfinite=skip") == 0
    assert "batches skipped (numerics.on_nonfinite): steps 2\n" in capsys.readouterr().out
    folder = tmp_path / "run"
    steps = table(folder, "steps").drop_duplicates("step").set_index("step")
    assert steps["skipped"].tolist() == [False, False, True, False, False]
    assert steps["nonfinite"].equals(steps["skipped"])
    layers = table(folder, "layers").set_index(["step", "layer"])
    assert (layers.loc[2, "applied_norm"] == 0).all()
    assert (layers.loc[2, "drift"] == layers.loc[1, "drift"]).all()
    assert (layers.loc[3, "applied_norm"] > 0).all()


def test_recorded_numbers_leave_a_model_that_is_evaluated_and_edited_to_the_end(
    tmp_path: Path, broken_batch: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    broken_batch(2)
    assert run(tmp_path, *FOUR_STEPS, "numerics.on_nonfinite=record") == 0
    assert "batches not finite but written (numerics.on_nonfinite): steps 2, 3, 4\n" in (
        capsys.readouterr().out
    )
    steps = table(tmp_path / "run", "steps")
    assert steps.loc[steps["step"] < 2, "nonfinite"].eq(False).all()
    after = steps[steps["step"] >= 2]
    assert after["nonfinite"].all() and not after["skipped"].any()
    assert (after["efficacy"] == 0).all() and (after["specificity"] == 0).all()
    assert after[["he", "he_ratio", "perplexity"]].isna().all(axis=None)
    layers = table(tmp_path / "run", "layers").set_index(["step", "layer"])
    assert layers.loc[(2, 0), ["he", "cos_std", "drift"]].notna().all()
    assert layers.loc[(2, 2), ["he", "cos_std", "drift"]].isna().all()
    cases = table(tmp_path / "run", "cases")
    assert cases.loc[cases["step"] >= 2, "nll_new"].isna().all()


def test_a_collapsed_run_ends_early_and_goes_on_only_past_other_thresholds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thresholds = ("collapse.perplexity=50", "collapse.efficacy=101")
    assert run(tmp_path, *DESTRUCTIVE, *thresholds) == 2
    assert "collapse.efficacy=101.0: must be between 0 and 100" in capsys.readouterr().err
    assert run(tmp_path, *DESTRUCTIVE, "collapse.perplexity=50") == 0
    assert "collapsed after step 1, 2 of 8 edits" in capsys.readouterr().out
    assert state(tmp_path) == ("collapsed", 1)
    steps = table(tmp_path / "run", "steps").drop_duplicates("step").set_index("step")
    assert steps["collapsed"].tolist() == [False, True]
    assert not steps.loc[1, "perplexity"] <= 50 * steps.loc[0, "perplexity"]
    parts = {part: part.stat().st_mtime_ns for part in tmp_path.rglob("part-*")}
    assert run(tmp_path, *DESTRUCTIVE, "collapse.perplexity=50") == 0
    assert "collapsed after step 1" in capsys.readouterr().out
    assert {part: part.stat().st_mtime_ns for part in tmp_path.rglob("part-*")} == parts
    assert run(tmp_path, *DESTRUCTIVE) == 0
    assert "collapsed after" not in capsys.readouterr().out
    assert state(tmp_path) == ("done", 4)
    assert table(tmp_path / "run", "steps")["step"].max() == 4


def test_a_run_killed_before_it_could_say_that_it_has_collapsed_says_so_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*DESTRUCTIVE, "collapse.perplexity=50")
    assert run(tmp_path, *command) == 0
    file = tmp_path / "run" / "progress.json"
    file.write_text(file.read_text().replace('"collapsed"', '"running"'))

    def never(*arguments: Any) -> None:
        raise AssertionError("a collapsed model was edited")

    monkeypatch.setattr("sphere_bench.editing.methods.fine_tuning.FineTuning.edit", never)
    assert run(tmp_path, *command) == 0
    assert state(tmp_path) == ("collapsed", 1)


def test_a_batch_that_was_left_out_is_no_collapse(tmp_path: Path) -> None:
    left_out = ("numerics.on_nonfinite=skip", "numerics.largest_update=1e-9")
    assert run(tmp_path, *FOUR_STEPS, *left_out, "collapse.efficacy=100") == 0
    assert state(tmp_path) == ("done", 4)
    steps = table(tmp_path / "run", "steps")
    assert steps.loc[steps["step"] > 0, "skipped"].all() and not steps["collapsed"].any()


def test_new_thresholds_end_a_run_where_they_are_passed_first(tmp_path: Path) -> None:
    """Also where an earlier process recorded more."""
    assert run(tmp_path, *DESTRUCTIVE, "checkpoint.keep=9") == 0
    folder = tmp_path / "run"
    file = folder / "progress.json"
    file.write_text(file.read_text().replace('"done"', '"running"'))
    for step in (2, 3, 4):
        shutil.rmtree(folder / "checkpoints" / f"step-{step}")
    assert run(tmp_path, *DESTRUCTIVE, "collapse.perplexity=50") == 0
    assert state(tmp_path) == ("collapsed", 1)
    assert table(folder, "steps")["step"].max() == 1


def test_a_signal_is_not_forgotten_when_its_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def solving(solver: object, layer: int, keys: Tensor, residual: Tensor) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        return math.nan * residual.new_ones(len(residual), len(keys))

    monkeypatch.setattr(LeastSquares, "solve", solving)
    seeds = ("seed=0,1", "run.name=null", f"run.root={tmp_path}")
    assert main(["run", "-m", *FOUR_STEPS, *seeds]) == 130
    assert "the update of layer 0 is not finite" in capsys.readouterr().err
    assert len(list(tmp_path.glob("memit-*"))) == 1


def test_a_threshold_of_perplexity_needs_the_probe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "collapse.perplexity=50", "perplexity.tokens=0") == 2
    assert "needs perplexity.tokens above 0" in capsys.readouterr().err


def test_without_the_probe_perplexity_is_empty(tmp_path: Path) -> None:
    assert run(tmp_path, *FOUR_STEPS, "perplexity.tokens=0", "evaluation.every=3") == 0
    assert table(tmp_path / "run", "steps")["perplexity"].isna().all()


def test_perplexity_is_taken_after_evaluated_steps(tmp_path: Path) -> None:
    assert run(tmp_path, *FOUR_STEPS, "perplexity.tokens=50", "evaluation.every=3") == 0
    steps = table(tmp_path / "run", "steps").drop_duplicates("step").set_index("step")
    assert steps.index[steps["perplexity"].notna()].tolist() == [0, 3, 4]
    assert (steps["perplexity"].dropna() > 1).all()


@pytest.mark.parametrize(
    ("thresholds", "efficacy", "perplexity", "reached"),
    [
        (Collapse(), 0.0, math.inf, False),
        (Collapse(efficacy=10), 9.9, 1.0, True),
        (Collapse(efficacy=10), 10.0, 1e9, False),
        (Collapse(efficacy=10), math.nan, 1e9, False),
        (Collapse(perplexity=5), 100.0, 10.0, False),
        (Collapse(perplexity=5), 100.0, 10.1, True),
        (Collapse(perplexity=5), 100.0, math.nan, True),
        (Collapse(perplexity=5), 100.0, math.inf, True),
        (Collapse(efficacy=10, perplexity=5), 5.0, 4.0, False),
        (Collapse(efficacy=10, perplexity=5), 20.0, 40.0, False),
        (Collapse(efficacy=10, perplexity=5), 5.0, 40.0, True),
    ],
)
def test_all_thresholds_that_are_set_must_be_passed(
    thresholds: Collapse, efficacy: float, perplexity: float, reached: bool
) -> None:
    assert thresholds.reached(efficacy, perplexity, unedited_perplexity=2.0) is reached
