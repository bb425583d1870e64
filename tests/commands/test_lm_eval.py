"""The probe's numbers of general ability are those of lm-eval's own command line."""

import json
import sys
from pathlib import Path

import pytest

from sphere_bench.cli import main
from sphere_bench.evaluation import harness
from tests.run_tables import table

pytest.importorskip("lm_eval", reason="general ability needs the extra lm-eval")
ITEMS = "40"
TASKS = "tiny_kinds,tiny_questions"
RUN = (
    *("+probe@probes.ability=ability", f"probes.ability.items={ITEMS}", "evaluation.every=1"),
    *("perplexity.tokens=0", "evaluation.seen=1", "edits.total=3", "edits.batch_size=1"),
    # Its steps are so large that something is forgotten.
    *("editor=ft", "sphere=off", "editor.method.learning_rate=5e-2"),
    *("checkpoint.steps=[1]", "run.name=run"),
)


def test_an_exported_models_numbers_are_the_same_on_lm_evals_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.tasks import manager

    assert main(["run", f"run.root={tmp_path}", *RUN]) == 0
    edited = tmp_path / "edited"
    assert main(["export", str(tmp_path / "run"), "--step", "1", "--out", str(edited)]) == 0
    # Going through lm-eval's own ten thousand tasks takes seconds.
    monkeypatch.setattr(manager, "__file__", str(tmp_path / "manager.py"))
    command = ["lm_eval", "run", "--model", "hf", "--device", "cpu", "--tasks", TASKS]
    command += ["--model_args", f"pretrained={edited}", "--include_path", str(harness.OWN_TASKS)]
    command += ["--limit", ITEMS, "--output_path", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    cli_evaluate()
    (file,) = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(file.read_text())["results"]
    ours = table(tmp_path / "run", "abilities").set_index(["step", "task"])
    for task in TASKS.split(","):
        row = ours.loc[(1, task)]
        assert row["value"] == pytest.approx(theirs[task][f"{row['metric']},none"], abs=1e-12)
        error = theirs[task][f"{row['metric']}_stderr,none"]
        assert row["stderr"] == pytest.approx(error, abs=1e-12)
    # It is the exported step's number: before and behind it the model answers otherwise.
    answered = [ours.loc[(step, "tiny_questions"), "value"] for step in (0, 1, 3)]
    assert len(set(answered)) == 3, answered
