"""Ctrl-C and SIGTERM: the first lets the step end, the second abandons it; both can go on."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from sphere_bench.run_folder.checkpoints import Checkpoints
from sphere_bench.run_folder.folder import RunFolder
from tests.children import Nursery
from tests.faults.conftest import Reference

# The second step is being made then.
PLACES = {
    "values": ("sphere_bench.editing.locate_then_edit:solve_target_values", 1),
    "solve": ("sphere_bench.editing.solvers:LeastSquares.solve", 4),
    "evaluation": ("sphere_bench.evaluation.teacher_forced:TeacherForced.measure", 2),
    "recording": ("sphere_bench.run_folder.tables:Recorder.commit_step", 2),
}
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.mark.parametrize("place", PLACES)
def test_the_first_lets_the_step_end_and_saves_it(
    nursery: Nursery, reference: Callable[[str], Reference], place: str, tmp_path: Path
) -> None:
    number = signal.SIGTERM if place == "solve" else signal.SIGINT
    target, call = PLACES[place]
    fault = {"target": target, "call": call, "number": number, "times": 1}
    end = nursery.run(tmp_path, "checkpoint.every=3", signal_in_call=fault)
    assert end.code == CODES[number]
    assert "stopping after this step" in end.output
    assert end.output.endswith("stopped; run the same command again to go on\n")
    assert "Traceback" not in end.output
    progress = RunFolder(tmp_path / "run").progress()
    assert progress is not None
    assert (progress.state, progress.step) == ("interrupted", 2)
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [2]
    assert nursery.run_each([tmp_path]).code == 0
    reference("memit").assert_completed(tmp_path / "run")


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("place", PLACES)
def test_the_second_abandons_the_step(
    nursery: Nursery,
    reference: Callable[[str], Reference],
    place: str,
    number: signal.Signals,
    tmp_path: Path,
) -> None:
    target, call = PLACES[place]
    fault = {"target": target, "call": call, "number": number, "times": 2}
    end = nursery.run(tmp_path, signal_in_call=fault)
    assert end.code == CODES[number]
    assert "Traceback" not in end.output
    progress = RunFolder(tmp_path / "run").progress()
    assert progress is not None
    assert (progress.state, progress.step) == ("interrupted", 1)
    assert nursery.run_each([tmp_path]).code == 0
    reference("memit").assert_completed(tmp_path / "run")


@pytest.mark.parametrize("number", CODES)
def test_before_the_first_step_one_is_enough(
    nursery: Nursery, number: signal.Signals, tmp_path: Path
) -> None:
    target = "sphere_bench.build:load_model"
    fault = {"target": target, "call": 0, "number": number, "times": 1}
    assert nursery.run(tmp_path, signal_in_call=fault).code == CODES[number]
    assert not (tmp_path / "run" / "progress.json").exists()
