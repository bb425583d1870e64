"""`sphere-bench calibrate` on the tiny GPT-2: a file that a run takes, on records kept out."""

import json
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from sphere_bench.calibration.bench import Bench
from sphere_bench.cli import main
from tests.run_tables import table

RECORDS, ALL = 3, 1500
# What decides a trial, and a run that shall give the same numbers.
SHARED = (
    *("dataset=tiny-counterfact", "statistics=bundled", "statistics.tokens=3000"),
    *("values.contexts=['{}']", "perplexity.tokens=50", "model.values.steps=6"),
)
TINY = (
    *("model.path=bundled", "calibration.null_space_editor.held_out_per_dimension=1"),
    f"calibration.records={RECORDS}",
    "calibration.layers=[[0,1],[1,2]]",
    "calibration.values=[{learning_rate: 0.5, weight_decay: 0.001, clamp_norm_factor: 4.0}]",
    "calibration.second_moment_weights=[100,0.01]",
    # No direction of the first one has such small eigenvalues.
    "calibration.null_spaces=[{rule: absolute, threshold: 1e-30, ridge: 0.1},"
    "{rule: share, threshold: 0.1, ridge: 0.1}]",
)


@dataclass
class Calibrated:
    """What a calibration left behind."""

    file: Path
    out: str
    err: str

    @property
    def node(self) -> Any:
        return OmegaConf.to_container(OmegaConf.load(self.file))

    @property
    def trials(self) -> list[Any]:
        lines = self.file.with_suffix(".trials.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines]


def calibrate(file: Path) -> Calibrated:
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["calibrate", *SHARED, *TINY, f"out={file}"])
    assert code == 0, err.getvalue()
    return Calibrated(file, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    return calibrate(tmp_path_factory.mktemp("calibrated") / "model" / "mine.yaml")


def test_a_run_takes_the_file_and_gives_the_numbers_of_the_trial(
    calibrated: Calibrated, tmp_path: Path
) -> None:
    node = calibrated.node
    (trial,) = [
        each
        for each in calibrated.trials
        if each["records"] == RECORDS
        and each["setting"]["layers"] == node["layers"]
        and each["setting"]["second_moment_weight"] == node["second_moment_weight"]
    ]
    chosen = ("--config-dir", str(calibrated.file.parent.parent), "model=mine", "sphere=off")
    kept_out = (f"edits.start={ALL - RECORDS}", "edits.total=3", "edits.batch_size=3")
    shared = [each for each in SHARED if not each.startswith("model.")]
    assert main(["run", *chosen, *shared, *kept_out, f"run.root={tmp_path}", "run.name=run"]) == 0
    steps = table(tmp_path / "run", "steps")
    (row,) = steps[(steps["step"] == 1) & (steps["scope"] == "batch")].to_dict("records")
    for name in ("efficacy", "generalization", "specificity", "perplexity"):
        assert row[name] == pytest.approx(trial["scores"][name], rel=1e-5), name
    layers = table(tmp_path / "run", "layers")
    drift = layers[layers["step"] == 1]["drift"].mean()
    assert drift == pytest.approx(trial["scores"]["drift"], rel=1e-4)


def test_the_null_space_is_that_of_alphaedit(
    calibrated: Calibrated, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(calibrated.file.parent.parent)
    shown = ("--cfg", "job", "--resolve", "--config-dir", folder, "model=mine")
    assert main(["run", *shown, "editor=alphaedit"]) == 0
    config: Any = OmegaConf.create(capsys.readouterr().out)
    solver = config["editor"]["method"]["solver"]
    assert (solver["ridge"], solver["null_space"]["threshold"]) == (0.1, 0.1)
    assert solver["null_space"]["rule"] == "share"
    assert config["editor"]["layers"] == calibrated.node["layers"]
    assert config["editor"]["values"]["steps"] == 6
    assert config["statistics"]["corpus"] == "bundled"


def test_the_file_says_what_was_tried_on_which_records(calibrated: Calibrated) -> None:
    lines = calibrated.file.read_text("utf-8").splitlines()
    comments = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    comment = " ".join(comments)
    assert "efficacy (success) of at least 98" in comment
    assert f"from record {ALL - RECORDS} on (case 1497 to 1499)" in comment
    assert f"edits.total={ALL - RECORDS} or less" in comment
    assert len(re.findall(r"- layers \d-\d", comment)) == len(calibrated.trials)
    # Whichever layers are chosen, and wherever the lines end.
    no_null_space = r"L2 0\.1, 3 records: layer \d has no null space below the threshold"
    assert re.search(no_null_space, " ".join(comment.split()))
    assert comment.partition("Tried")[0].strip() in " ".join(calibrated.out.split())
    # Announced, then one line a trial.
    assert len(re.findall(r"^sphere-bench: trial", calibrated.err, re.MULTILINE)) == len(
        calibrated.trials
    )
    assert f"model={calibrated.file.stem} dataset=tiny-counterfact" in calibrated.out


def test_finished_trials_are_taken_up_again(
    calibrated: Calibrated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after Ctrl-C: the trials are there, the model's file is not."""
    again = tmp_path / "model" / "mine.yaml"
    again.parent.mkdir()
    trials = calibrated.file.with_suffix(".trials.jsonl").read_text("utf-8").splitlines()
    again.with_suffix(".trials.jsonl").write_text("".join(f"{each}\n" for each in trials[:-1]))
    made = []
    try_out = Bench.try_out

    def counted(self: Bench, setting: Any, records: int) -> Any:
        made.append(setting)
        return try_out(self, setting, records)

    monkeypatch.setattr(Bench, "try_out", counted)
    repeated = calibrate(again)
    assert len(made) == 1
    assert made[0].null_space is not None
    assert repeated.file.read_text("utf-8") == calibrated.file.read_text("utf-8")


WRONG = {
    "nothing given": ([], "model.path is missing: set it"),
    "no place for a model": (["out=mine.yaml"], "out=mine.yaml: must be FOLDER/model/NAME.yaml"),
    "no option": (["out=a/model/_b.yaml"], "out=a/model/_b.yaml: must be FOLDER/model/NAME.yaml"),
    "a name that is taken": (["out=a/model/gpt2.yaml"], "the package's own model=gpt2 would"),
    "another editor": (["editor=rect"], "editor=rect: a calibration edits with memit and"),
    "a stream": (["edits.total=500"], "edits.total=500: a calibration has no stream"),
    "no damage": (["perplexity.tokens=0"], "perplexity.tokens=0: a calibration needs a text"),
    "no records": (["calibration.records=0"], "calibration.records=0: must be .* at least 1"),
    "too many records": (["calibration.records=1501"], "tiny-counterfact holds 1500 records"),
    "records behind the end": (["calibration.start=1499"], "calibration.start=1499: tiny-count"),
    "no candidate": (["calibration.values=[]"], r"calibration.values=\[\]: name at least one"),
    "half a candidate": (
        ["calibration.values=[{learning_rate: 1.0}]"],
        "calibration.values: .* must have learning_rate, weight_decay, clamp_norm_factor",
    ),
    "a lambda of nothing": (["calibration.second_moment_weights=[0]"], "must be .* greater than 0"),
    "layers that fall": (["calibration.layers=[[2,1]]"], "calibration.layers=.*: must be a rising"),
    "misspelt": (["calibration.recods=3"], "no key 'calibration.recods': did you mean"),
    "no such rule": (
        ["calibration.null_spaces=[{rule: best, threshold: 1, ridge: 1}]"],
        "calibration.null_spaces.rule=best: must be one of absolute, share",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_input_is_reported_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["dataset=tiny-counterfact", *(["model.path=bundled"] if arguments else [])]
    assert main(["calibrate", *given, *arguments]) == 2
    said = capfd.readouterr()
    assert re.fullmatch(f"sphere-bench: error: .*{message}.*\n", said.err)
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_left_alone(
    calibrated: Calibrated, capsys: pytest.CaptureFixture[str]
) -> None:
    before = calibrated.file.read_bytes()
    assert main(["calibrate", *SHARED, *TINY, f"out={calibrated.file}"]) == 2
    assert re.search("mine.yaml exists: move it away, or name another", capsys.readouterr().err)
    assert calibrated.file.read_bytes() == before


def test_damaged_trials_are_named_with_the_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model" / "mine.yaml"
    file.parent.mkdir()
    file.with_suffix(".trials.jsonl").write_text('{"key": ')
    assert main(["calibrate", *SHARED, *TINY, f"out={file}"]) == 2
    assert "mine.trials.jsonl is damaged: delete it" in capsys.readouterr().err
