"""Sweeps: whichever launcher runs the jobs, the verb knows which of them failed and why."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sphere_bench.commands.sweep import JobError, _choose_card, finish_sweep
from sphere_bench.config.composition import compose_config

ROOT = Path(__file__).parents[2]
# The seed says what becomes of the job.
TASK = """
import os, signal, sys
from pathlib import Path
from sphere_bench.errors import SphereBenchError
from tests.fast import hurry

hurry()


def task(config):
    if config.seed == 1:
        raise SphereBenchError("seed 1 brings bad luck")
    if config.seed == 2:
        os._exit(0)
    if config.seed == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.seed == 4:
        raise ZeroDivisionError("seed 4")
    if config.seed == 5:
        sys.exit(0)
    import beside_the_options

    config.run.folder.joinpath("done").write_text(beside_the_options.TEXT)
    config.run.folder.joinpath("cards").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    return abs(config.sphere.alpha - 0.5) + config.sphere.alpha / 8
"""
# The command line with that task in place of a run, which would import torch.
MAIN = """
import sys
from types import SimpleNamespace
from submitit.core.core import Job
from sphere_bench.cli import main
from sphere_bench.commands.hydra_entry import hydra_main
from jobs_of_test import task

Job._results_timeout_s = 2  # seconds to wait for what a dead job has left; 15 otherwise

if __name__ == "__main__":
    verb = SimpleNamespace(main=lambda arguments: hydra_main(task, "run", arguments))
    sys.modules["sphere_bench.commands.run"] = verb
    sys.exit(main(["run", *sys.argv[1:]]))
"""
# Asks for two batches: the second depends on what the first returned.
SWEEPER = """
import json
from dataclasses import dataclass
from pathlib import Path
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper


@dataclass
class HalvingConf:
    _target_: str = "hydra_plugins.halving.Halving"


ConfigStore.instance().store(group="hydra/sweeper", name="halving", node=HalvingConf)


class Halving(Sweeper):
    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def values(self, alphas, first):
        jobs = [[*self.arguments, f"sphere.alpha={alpha}"] for alpha in alphas]
        ends = self.launcher.launch(jobs, initial_job_idx=first)
        return {end.return_value: alpha for end, alpha in zip(ends, alphas)}

    def sweep(self, arguments):
        self.arguments = arguments
        first = self.values([0.25, 0.75], 0)
        second = self.values([min(first.items())[1] + 0.25], 2)
        Path("found").write_text(json.dumps([*first.items(), *second.items()]))
"""
LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
}
DIED = "its process ended without a report (killed, or out of memory)"
Sweep = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Sweeps in a folder of its own, with jobs that load no model."""
    options = tmp_path / "options"
    for folder, name, text in (
        (tmp_path, "jobs_of_test.py", TASK),
        (tmp_path, "sweep.py", MAIN),
        (tmp_path / "hydra_plugins", "halving.py", SWEEPER),
        (options, "beside_the_options.py", "TEXT = 'found'\n"),
    ):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    def call(*arguments: str, cards: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "sweep.py", "-m", "--config-dir", "options", *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]),
                "CUDA_VISIBLE_DEVICES": cards,
            },
            capture_output=True,
            text=True,
            timeout=300,
        )

    return call


def folders(tmp_path: Path) -> list[str]:
    """Names in the results, without the digits at the end of a run's."""
    found = (path.name for path in (tmp_path / "results").iterdir())
    return sorted(name.rpartition("-")[0] or name for name in found)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_jobs_that_fail_are_counted_and_the_others_are_done(
    launcher: str, sweep: Sweep, tmp_path: Path
) -> None:
    result = sweep("seed=0,1,4", *LAUNCHERS[launcher])
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        "sphere-bench: error: 2 of 3 jobs failed: job 1: seed 1 brings bad luck; "
        "job 2: ZeroDivisionError: seed 4 (set SPHERE_BENCH_DEBUG=1 for the traceback)"
    )
    assert "Traceback" not in result.stderr
    own = [".submitit"] if launcher == "submitit_local" else []
    stem = "memit-paper-tiny-gpt2-tiny-counterfact"
    assert folders(tmp_path) == [*own, f"{stem}-seed0", "multirun.yaml"]
    (done,) = tmp_path.glob(f"results/{stem}-seed0-*/done")
    assert done.read_text() == "found"


@pytest.mark.parametrize(
    ("launcher", "own"),
    [("joblib", ()), ("submitit_local", ("hydra.launcher.gpus_per_node=2",))],
)
def test_a_sweep_without_failures_ends_well_each_job_on_a_card_of_its_own(
    launcher: str, own: tuple[str, ...], sweep: Sweep, tmp_path: Path
) -> None:
    result = sweep("seed=0,6", *LAUNCHERS[launcher], *own, cards="4,7")
    assert result.returncode == 0, result.stderr
    assert "error" not in result.stderr
    assert len(list(tmp_path.glob("results/*/done"))) == 2
    seen = {file.read_text() for file in tmp_path.glob("results/*/cards")}
    # A process of joblib may take both jobs.
    assert seen == {"4", "7"} or (launcher == "joblib" and seen < {"4", "7"})
    assert not list(tmp_path.glob("results/.jobs-*"))


@pytest.mark.parametrize(("launcher", "seed"), [("joblib", 3), ("submitit_local", 2)])
def test_a_job_that_dies_at_once_is_reported(
    launcher: str, seed: int, sweep: Sweep, tmp_path: Path
) -> None:
    result = sweep(f"seed={seed}", *LAUNCHERS[launcher])
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"sphere-bench: error: 1 of 1 jobs failed: job 0: {DIED}; the launcher")
    assert not list(tmp_path.glob("results/.jobs-*"))


def test_jobs_are_waited_for_when_another_one_died(sweep: Sweep, tmp_path: Path) -> None:
    result = sweep("seed=3,1,0", *LAUNCHERS["submitit_local"])
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert f"job 0: {DIED}; " in last
    if "of 3 jobs" in last:  # all had started when the first was found dead
        assert "2 of 3 jobs failed" in last
        assert len(list(tmp_path.glob("results/*/done"))) == 1


def test_a_job_cannot_end_the_sweep_with_success(sweep: Sweep) -> None:
    result = sweep("seed=5,0")
    assert result.returncode == 1
    assert (
        "1 of 2 jobs failed: job 0: RuntimeError: something in the run called sys.exit(0)"
        in (result.stderr.splitlines()[-1])
    )


@pytest.mark.parametrize(
    ("device", "seen", "number", "chosen"),
    [
        ("auto", "4,7", 3, "7"),
        ("cuda", "4,7", 2, "4"),
        ("cuda:1", "4,7", 2, "4,7"),
        ("sharded", "4,7", 2, "4,7"),
        ("auto", "5", 2, "5"),
        ("auto", "", 2, ""),
    ],
)
def test_a_job_takes_one_of_the_cards_that_it_sees(
    device: str, seen: str, number: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    _choose_card(number, device, seen)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == chosen


@pytest.mark.parametrize(
    ("of_sweep", "device", "dealt", "chosen"),
    [
        ("4,7", "auto", "0,1", "7"),
        ("4,7", "cuda:1", "0,1", "4,7"),
        ("GPU-a,GPU-b,GPU-c", "sharded", "0,1", "GPU-a,GPU-b"),
        ("4,7", "auto", "0", "4"),
        ("4,7", "sharded", "0,1,2", "4,7"),
        ("4,7", "auto", "", ""),
        (None, "auto", "0,1", "1"),
    ],
)
def test_submitit_deals_the_cards_that_the_sweep_was_given(
    of_sweep: str | None, device: str, dealt: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", dealt)
    _choose_card(1, device, of_sweep)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == chosen


def test_a_sweeper_gets_what_the_jobs_return(sweep: Sweep, tmp_path: Path) -> None:
    result = sweep("hydra/sweeper=halving", *LAUNCHERS["joblib"])
    assert result.returncode == 0, result.stderr
    # |alpha - 0.5| + alpha / 8: the better of the first two leads to the third.
    found = json.loads((tmp_path / "found").read_text())
    assert found == [[0.28125, 0.25], [0.34375, 0.75], [0.0625, 0.5]]
    assert len(list(tmp_path.glob("results/*/done"))) == 3


def test_a_sweeper_gets_the_failure_of_a_job(sweep: Sweep) -> None:
    result = sweep("hydra/sweeper=halving", "seed=1")
    assert result.returncode == 2
    assert "of 2 jobs failed: job 0: seed 1 brings bad luck" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_runs_of_a_model_are_made_side_by_side(launcher: str, tmp_path: Path) -> None:
    few = ("experiment=smoke", "model.values.steps=1", "evaluation.seen=1")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "sphere_bench", "run", "-m"),
            *(*LAUNCHERS[launcher], *few, "sphere.alpha=0.5,7"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        "sphere-bench: error: 1 of 2 jobs failed: job 1: sphere.alpha=7.0: must be between 0 and 1"
    )
    (run,) = tmp_path.glob("results/memit-*")
    assert run.name == compose_config([*few, "sphere.alpha=0.5"]).run.name
    assert run.name.startswith("memit-alpha0.5-tiny-gpt2-tiny-counterfact-smoke-")
    assert json.loads((run / "progress.json").read_text())["state"] == "done"


def test_a_job_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(JobError("no such file", 2)))
    assert (str(error), error.code) == ("no such file", 2)


def test_of_many_failures_the_first_ones_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "records"
    records.mkdir()
    for number in range(30):
        (records / f"{number}.json").write_text('["bad luck", 2]' if number > 10 else "null")
    note = tmp_path / "note"
    note.write_text(str(records))
    assert finish_sweep(note, None) == 2
    line = capsys.readouterr().err
    assert line.startswith("sphere-bench: error: 19 of 30 jobs failed: job 11: bad luck; job 12: ")
    assert line.endswith("; job 18: bad luck; and 11 more\n")
    assert not records.exists()
