import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sphere_bench.commands.run
from sphere_bench import __version__, cli
from sphere_bench.commands.error_messages import complain
from sphere_bench.errors import SphereBenchError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sphere_bench_in(tmp_path, monkeypatch, capfd):
    """Runs the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = cli.main(list(arguments))
        said = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code, said.out, said.err)

    return call


def test_help_names_the_verbs(capsys):
    assert cli.main(["--help"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"^  run +edit a model", output, re.MULTILINE)
    assert re.search(r"^  report +show what happened", output, re.MULTILINE)
    assert re.search(r"^  stats +compute", output, re.MULTILINE)
    assert re.search(r"^  export +write", output, re.MULTILINE)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sphere-bench {__version__}\n"


@pytest.mark.parametrize("verb", ["run", "stats"])
def test_a_verbs_help_shows_the_groups_and_the_keys(sphere_bench_in, verb):
    result = sphere_bench_in(verb, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"usage: sphere-bench {verb}" in result.stdout
    assert "sphere: off, paper, published-code" in result.stdout
    assert re.search(r"^  edits.batch_size=100 +how many at a time$", result.stdout, re.MULTILINE)
    assert "batch_size: 50" in result.stdout


def test_the_configuration_is_shown_without_importing_torch(tmp_path):
    code = (
        "import sys; from sphere_bench.cli import main; code = main(sys.argv[1:]);"
        "sys.exit(code or ('torch' in sys.modules or 'transformers' in sys.modules) * 3)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "run", "--cfg", "job", "edits.total=70"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "alpha: ${editor.sphere.alpha}" in result.stdout
    assert "total: 70" in result.stdout
    assert not list(tmp_path.iterdir())


WRONG = {
    "no verb": ([], "a verb is missing: there are run, report, stats, export"),
    "unknown verb": (["runn"], "no verb 'runn': there are run, report, stats, export"),
    "unknown flag": (["run", "--multi"], "unrecognized arguments: --multi"),
    "clashing flags": (["run", "-m", "--cfg", "job"], "--cfg.* not allowed with .*--multirun"),
    "misspelt key": (["run", "sphere.alhpa=1"], "no key 'sphere.alhpa': did you mean 'sphere.alph"),
    "misspelt node": (["run", "edit.total=1"], "no key 'edit.total': did you mean 'edits.total'"),
    "missing node": (["run", "alpha=1"], "no key 'alpha': did you mean 'sphere.alpha'"),
    "misspelt group": (["run", "editorr=memit"], "no key 'editorr': did you mean 'editor'"),
    "new key": (["run", "+sphere.zeal=1"], "no key 'sphere.zeal': there are .*sphere.alpha"),
    "unknown option": (
        ["run", "editor=memitt"],
        "no editor 'memitt': there are .*memit, .*; did you mean memit",
    ),
    "bad syntax": (["run", "sphere.alpha"], "cannot read 'sphere.alpha' .*KEY=VALUE"),
    "bad quoting": (["run", "model.path=~/model"], "cannot read 'model.path=~/model'.*quotes"),
    "sweep without -m": (["run", "seed=0,1"], "seed=0,1 has several values: add --multirun"),
    "missing interpolation": (["run", "seed=${sed}"], "seed: Interpolation key 'sed' not found"),
    "deleted key": (["run", "~sphere.eta"], "sphere.eta is missing: set it"),
    "wrong type": (["run", "edits.total=many"], "edits.total=many: must be a whole number"),
    "no number": (["run", "sphere.alpha=high"], "sphere.alpha=high: must be a number"),
    "no truth": (["run", "edits.shuffle=maybe"], "edits.shuffle=maybe: must be true or false"),
    "no target": (
        ["run", "editor.method._target_=foo.Bar"],
        "_target_: foo.Bar cannot be found: No module named 'foo'",
    ),
    "out of range": (["run", "sphere.alpha=1.5"], r"sphere.alpha=1.5: must be between 0 and 1"),
    "batch too large": (["run", "edits.batch_size=999"], "edits.batch_size=999 is larger than"),
    "unknown device": (["run", "device=fpu"], "device=fpu: must be one of auto, cpu, cuda"),
    "missing data": (["run", "dataset.path=no.json"], "dataset.path=no.json: no such file"),
    "missing folder": (["run", "--config-dir", "no"], "config directory .*no' not found"),
    "escaping name": (["run", "run.name=../up"], r"run.name=../up: must be one folder's name"),
    "statistics": (["stats", "model.layers=[]"], r"model.layers=\[\]: must be a rising list"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_input_is_reported_in_one_line(arguments, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    said = capfd.readouterr()
    assert re.fullmatch(f"sphere-bench: error: .*{message}.*\n", said.err)
    assert said.out == ""
    assert [path.name for path in tmp_path.rglob("*") if path.name != "results"] == []


def test_a_model_for_a_gpu_needs_one(sphere_bench_in):
    result = sphere_bench_in("run", "model=llama3-8b-random")
    assert result.returncode == 2
    assert re.fullmatch("sphere-bench: error: device=cuda is not usable here .*\n", result.stderr)


@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_a_run_folder_that_cannot_be_made_is_named(sphere_bench_in, tmp_path, sweep):
    (tmp_path / "file").touch()
    result = sphere_bench_in("run", *sweep, "run.root=file/results")
    assert result.returncode == 2
    assert re.fullmatch(
        "sphere-bench: error: cannot make the folder file/results.* "
        r"\(Not a directory\): choose another run.root\n",
        result.stderr,
    )


def test_a_sweeps_failing_jobs_are_reported_one_by_one_and_together_at_the_end(
    sphere_bench_in, tmp_path
):
    result = sphere_bench_in("run", "sphere.alpha=0.5,7", "-m", "dataset.path=a.json,b.json")
    *errors, last = [line for line in result.stderr.splitlines() if "error" in line]
    assert result.returncode == 2
    assert [re.findall(r"job \d", line) for line in errors] == [[f"job {n}"] for n in range(4)]
    assert errors[1] == "sphere-bench: error: job 1: dataset.path=b.json: no such file"
    assert errors[2].endswith("job 2: sphere.alpha=7.0: must be between 0 and 1")
    assert last == result.stderr.splitlines()[-1]
    reasons = [line.removeprefix("sphere-bench: error: ") for line in errors]
    assert last == f"sphere-bench: error: 4 of 4 jobs failed: {'; '.join(reasons)}"
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["multirun.yaml"]


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_options_of_the_users_own_are_found(sphere_bench_in, tmp_path):
    write(
        tmp_path / "mine" / "experiment" / "weak.yaml",
        "# @package _global_\nsphere:\n  name: weak\n  alpha: 0.1\n",
    )
    result = sphere_bench_in("run", "--config-dir", "mine", "experiment=weak", "--cfg", "job")
    assert (result.returncode, result.stderr) == (0, "")
    assert "alpha: 0.1" in result.stdout
    shown = sphere_bench_in("run", "--config-dir", "mine", "--help").stdout
    assert re.search(r"^  experiment: .*smoke, .*weak$", shown, re.MULTILINE)


def test_a_key_that_only_the_schema_knows_can_be_set(sphere_bench_in, tmp_path):
    model = (ROOT / "configs" / "model" / "tiny-gpt2.yaml").read_text()
    model = re.sub(r"^(dtype|modules|revision|  layers|  projection):.*\n", "", model, flags=re.M)
    assert "dtype" not in model
    write(tmp_path / "mine" / "model" / "mine.yaml", model)
    keys = ("model.modules.layers=transformer.h", "model.dtype=bfloat16", "model.editors.mine.x=1")
    result = sphere_bench_in("run", "--config-dir", "mine", "model=mine", *keys, "--cfg", "job")
    assert (result.returncode, result.stderr) == (0, "")
    assert "layers: transformer.h" in result.stdout
    assert "dtype: bfloat16" in result.stdout
    assert re.search(r"mine:\n +x: 1", result.stdout)
    wrong = sphere_bench_in("run", "--config-dir", "mine", "model=mine", "model.dtpye=bfloat16")
    assert wrong.returncode == 2
    assert "no key 'model.dtpye': did you mean 'model.dtype'?" in wrong.stderr


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("class Mine(:\n", r"\S+/broken\.py, line 1: invalid syntax"),
        ("raise ValueError('no\\ngood')\n", "ValueError: no good"),
    ],
)
def test_a_module_that_cannot_be_imported_is_reported_once(
    source, problem, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine" / "broken.py", source)
    editor = "defaults: [_base, _self_]\nname: broken\nmethod:\n  _target_: broken.Mine\n"
    write(tmp_path / "mine" / "editor" / "broken.yaml", editor)
    assert cli.main(["run", "--config-dir", "mine", "editor=broken"]) == 2
    assert re.fullmatch(
        f"sphere-bench: error: _target_: broken.Mine cannot be imported: {problem}\n",
        capfd.readouterr().err,
    )


def test_a_folder_of_runs_is_not_a_folder_of_options(sphere_bench_in, tmp_path):
    write(tmp_path / "results" / "one" / "provenance.json", "{}")
    result = sphere_bench_in("run", "--config-dir", "results", "--cfg", "job")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "sphere-bench: error: --config-dir results holds runs, not options: name one run's own "
        "folder, such as results/one\n"
    )
    write(tmp_path / "results" / "sphere" / "mine.yaml", "{}")
    assert sphere_bench_in("run", "--config-dir", "results", "--cfg", "job").returncode == 0


def test_a_rerun_from_a_runs_folder_with_another_seed_is_another_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = ("experiment=smoke", "model.values.steps=1", "evaluation.seen=1", "edits.total=5")
    assert cli.main(["run", *few]) == 0
    (first,) = (tmp_path / "results").iterdir()
    folder = ("run", "--config-dir", str(first))
    assert cli.main(folder) == 0
    assert cli.main([*folder, "seed=1"]) == 0
    names = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "results").iterdir())
    stem = "memit-paper-tiny-gpt2-tiny-counterfact-smoke-steps1-seen1"
    assert names == [f"{stem}-seed0", f"{stem}-seed1"]
    assert cli.main([*folder, "model.layers=[1]"]) == 2
    said = capsys.readouterr().err
    assert "model.layers does nothing in a run's own configuration" in said


def test_a_reader_that_has_enough_is_no_error(tmp_path):
    command = f"{sys.executable} -m sphere_bench run --help | head -1"
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.stdout.startswith("usage: sphere-bench run")
    assert result.stderr == ""


def test_stopping_says_how_to_go_on(monkeypatch, capsys):
    def stopped(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sphere_bench.commands.run, "main", stopped)
    assert cli.main(["run"]) == 130
    assert capsys.readouterr().err == (
        "sphere-bench: stopped; run the same command again to go on\n"
    )


def test_a_closed_terminal_lets_the_step_end_and_saves_it(tmp_path):
    few = ["model.values.steps=1", "edits.batch_size=1", "run.name=run", "evaluation.seen=1"]
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
        os.chdir(tmp_path)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        os.execve(sys.executable, [sys.executable, "-m", "sphere_bench", "run", *few], environment)
    progress = tmp_path / "results" / "run" / "progress.json"
    while not progress.exists() or json.loads(progress.read_text())["step"] < 1:
        if select.select([terminal], [], [], 0.1)[0]:
            os.read(terminal, 1 << 16)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    state = json.loads(progress.read_text())
    assert state["state"] == "interrupted"
    assert (tmp_path / "results" / "run" / "checkpoints" / f"step-{state['step']}").is_dir()


def test_an_error_of_the_program_is_one_line_that_says_how_to_see_more(monkeypatch, capsys):
    def broken(arguments: list[str]) -> int:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(sphere_bench.commands.run, "main", broken)
    assert cli.main(["run"]) == 1
    assert capsys.readouterr().err == (
        "sphere-bench: error: ZeroDivisionError: division by zero "
        "(set SPHERE_BENCH_DEBUG=1 for the traceback)\n"
    )


@pytest.mark.parametrize(
    ("error", "more"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.53 GiB. GPU 0 has a"),
            ": 1.53 GiB more did not fit",
        ),
        (
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
            ),
            ": 8 bytes more did not fit",
        ),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `create`"), ""),
        (MemoryError(), ""),
    ],
)
def test_where_nothing_backs_off_memory_that_runs_out_is_one_line(error, more, capsys):
    assert complain(error) == 2
    assert capsys.readouterr().err == (
        f"sphere-bench: error: out of memory{more}, and smaller batches do not help: use "
        "model.dtype=bfloat16, fewer model.layers, a smaller model or another device\n"
    )


def test_an_error_is_explained_without_importing_torch():
    code = (
        "import sys; from sphere_bench.commands.error_messages import explain;"
        "sys.exit(explain(RuntimeError('any')) is not None or 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_debugging_shows_the_traceback_before_the_line(monkeypatch, capsys):
    monkeypatch.setenv("SPHERE_BENCH_DEBUG", "1")
    assert complain(SphereBenchError("lower it")) == 2
    error = capsys.readouterr().err
    assert error.startswith("sphere_bench.errors.SphereBenchError: lower it")
    assert error.endswith("sphere-bench: error: lower it\n")
