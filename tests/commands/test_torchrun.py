"""A run that several processes share is the run of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sphere_bench.cli import main
from tests.run_tables import assert_same_tables

ROOT = Path(__file__).parents[2]
# More requests than are solved at a time, so that there is something to share.
SETTINGS = (
    "edits.total=36",
    "edits.batch_size=18",
    "model.values.steps=3",
    "values.contexts=['{}','Nobody knew why. {}']",
    "evaluation.seen=4",
    "evaluation.first=4",
    "perplexity.tokens=20",
    "device=cpu",
)


def torchrun(
    processes: int, root: Path, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    arguments = ("--nproc-per-node", str(processes), "-m", "sphere_bench", "run")
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", *arguments),
            *(f"run.root={root}", "run.name=run", *SETTINGS),
        ],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{path or ''}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_two_and_three_processes_make_the_tables_of_one(tmp_path: Path) -> None:
    assert main(["run", f"run.root={tmp_path}", "run.name=alone", *SETTINGS]) == 0
    for processes in (2, 3):
        root = tmp_path / str(processes)
        ended = torchrun(processes, root)
        assert ended.returncode == 0, ended.stderr
        assert_same_tables(root / "run", tmp_path / "alone")
        assert ended.stdout.count("tables: ") == 1  # one of them makes the run
        assert [path.name for path in root.iterdir()] == ["run"]
    again = torchrun(2, tmp_path / "2")
    assert again.returncode == 0 and "already done" in again.stdout


# Python imports it at its start: the second process ends as soon as the first step is recorded.
DYING = """
import os, threading, time
from pathlib import Path

def die():
    while '"step": 1' not in (Path(os.environ["ROOT"]) / "run/progress.json").read_text():
        time.sleep(0.01)
    os._exit(1)

def wait():
    while not (Path(os.environ["ROOT"]) / "run/progress.json").exists():
        time.sleep(0.01)
    die()

if os.environ.get("RANK") == "1":
    threading.Thread(target=wait, daemon=True).start()
"""


def test_a_process_that_dies_ends_the_run_and_it_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(DYING)
    monkeypatch.setenv("ROOT", str(tmp_path))
    ended = torchrun(2, tmp_path, path=tmp_path)
    assert ended.returncode != 0
    assert "run the same command again to go on" in ended.stderr
    ended = torchrun(2, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert main(["run", f"run.root={tmp_path}", "run.name=alone", *SETTINGS]) == 0
    assert_same_tables(tmp_path / "run", tmp_path / "alone")


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_a_sweep_is_not_shared(
    flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["run", flag, "seed=0,1"]) == 2
    assert "torchrun and --multirun do not go together" in capsys.readouterr().err
