"""The benchmark measures every stage, and counts the value solver's work to the last operation."""

import os
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scripts.benchmark import main
from scripts.benchmark_work import (
    count_gradient_tokens,
    request_work,
    sample_rates,
    useful_operations,
)
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.values import solver
from sphere_bench.editing.values.solver import ValueSettings, solve_target_values
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.models import batching
from tests.golden_numbers import load_golden
from tests.tiny_models import tiny_model

ROOT = Path(__file__).parents[1]
QUICK = (
    "--reference-edits=1",
    "--growth-steps=2",
    "--growth-edits=2",
    "--statistics-tokens=100",
    "edits.total=3",
    "edits.batch_size=3",
    "model.values.steps=2",
    "values.contexts=['Nobody knew. {}']",
)
COMPARED = {"values", "keys", "update", "transform", "edit", "evaluation", "statistics"}


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_every_stage_is_measured_and_compared(tmp_path: Path) -> None:
    out = tmp_path / "new" / "benchmark.parquet"
    result = benchmark(*QUICK, f"--out={out}")
    assert result.returncode == 0, result.stderr
    table = pandas.read_parquet(out)
    assert table.attrs["provenance"]["packages"]["torch"]
    assert (table["edits"] == 3).all() and (table["reference_edits"] == 1).all()
    stages = table[table["section"] == "stage"].set_index("name")
    assert set(stages.index) >= COMPARED | {"energy"}
    assert (stages.loc[list(COMPARED), "ratio"] > 0).all()
    assert set(table["section"]) == {"memory", "stage", "machine", "values", "growth"}
    values = table[table["section"] == "values"].set_index("name")
    assert 0 < values.loc["useful work a second", "ratio"] < 1
    assert values.loc["the same in bfloat16", "ratio"] > 0  # many processors have no such product
    assert values.loc["kernels", "value"] > 100
    assert values.loc["starting them", "value"] > 0
    assert 0 < values.loc["starting them, share of an iteration", "value"] <= 100
    assert 0 <= values.loc["padding", "value"] < 100
    own, plain = values.loc["final loss, the sample's", ["value", "reference"]]
    assert own == pytest.approx(plain, abs=1e-4)
    for name in COMPARED:
        assert f" {name} " in result.stdout


def test_an_editor_without_target_values_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))  # as where the script is started
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # which the script sets
    assert main([*QUICK, "editor=ultraedit", f"--out={tmp_path / 'none.parquet'}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith("sphere-bench: error: editor=ultraedit has no stages to time")
    assert not list(tmp_path.iterdir())


def test_a_benchmark_that_is_cut_off_leaves_the_sections_that_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(benchmark: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setattr("benchmark_stages.Benchmark.stages", cut_off)
    out = tmp_path / "cut.parquet"
    with pytest.raises(KeyboardInterrupt):
        main([*QUICK, f"--out={out}"])
    table = pandas.read_parquet(out)
    assert set(table["section"]) == {"memory"}
    assert table.attrs["provenance"]["packages"]["torch"]


def test_the_check_of_a_gpu_leaves_the_slow_reference_out(tmp_path: Path) -> None:
    python, asked = tmp_path / "python", tmp_path / "asked"
    python.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "OUT": str(tmp_path)}
    script = ROOT / "scripts" / "gpu_check.sh"
    subprocess.run([script, "editor=alphaedit"], env=environment, check=True)
    last = asked.read_text().splitlines()[-1]
    assert last.startswith(f"scripts/benchmark.py --out {tmp_path}/gpu-benchmark.parquet")
    assert " --reference-edits 0 " in last and last.endswith(" editor=alphaedit")


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_useful_operations_are_those_of_matrix_products_without_padding(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "_TOKENS_A_FORWARD_IS_WORTH", 0)  # so nothing is padded
    # Not the forward of one token in which it tries whether the model takes packed ones.
    monkeypatch.setattr(solver, "takes_packed_tokens", lambda *_: True)
    loaded = tiny_model(architecture)
    request = load_golden("tiny-llama").requests[0]
    setup = EditingSetup(
        loaded=loaded,
        weights=EditedWeights(loaded.layout, [0, 1]),
        values=ValueSettings(),
        contexts=["{}"],
        second_moments=dict,
        seed=0,
        pool=lambda count: [request],
        tokens_per_batch=512,
    )

    def products(steps: int) -> int:
        settings = ValueSettings(steps=steps, loss_threshold=0)
        with FlopCounterMode(display=False) as counter:
            solve_target_values(loaded, [request], 1, setup.contexts, settings)
        counts = counter.get_flop_counts()["Global"]
        return counts[torch.ops.aten.mm] + counts.get(torch.ops.aten.addmm, 0)

    for steps in (1, 3):
        assert products(steps) == useful_operations(setup, [request], [steps])
    with count_gradient_tokens(loaded) as counted:
        solve_target_values(loaded, [request], 1, setup.contexts, ValueSettings(steps=3))
    # Two of the three iterations take a gradient.
    assert set(counted.values()) == {2 * request_work(setup, request).tokens}


def test_the_machine_is_measured_while_the_solver_runs_and_that_time_is_told_apart() -> None:
    loaded, golden = tiny_model("llama"), load_golden("tiny-llama")
    for every in (0.0, 1e6):
        with sample_rates(loaded, [torch.float32], every) as rates:
            solve_target_values(
                loaded, golden.requests[:1], 1, ["{}"], ValueSettings(steps=3, loss_threshold=0)
            )
        samples = rates.samples[torch.float32]
        if every:
            assert len(samples) == 2 and not rates.seconds  # before and behind
        else:
            assert len(samples) > 2 and rates.seconds > 0
        assert min(samples) <= rates.mean()[torch.float32] <= max(samples)
