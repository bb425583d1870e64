import json
import math
import os
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

from sphere_bench import recording
from sphere_bench.checkpoints import Checkpoint, Checkpoints
from sphere_bench.errors import SphereBenchError
from sphere_bench.files import atomic_file
from sphere_bench.recording import SCHEMAS, Progress, Recorder, Table, read_progress, read_table

# DESIGN.md, "A run's folder".
COLUMNS = {
    "steps": "step edits scope records efficacy generalization specificity score "
    "efficacy_success efficacy_accuracy generalization_success generalization_accuracy "
    "specificity_success specificity_accuracy score_success score_accuracy he he_ratio "
    "seconds_values seconds_keys seconds_update seconds_transform seconds_evaluate seconds_energy "
    "peak_memory_bytes perplexity nonfinite skipped collapsed",
    "layers": "step edits layer he he_normalized he_ratio weight_norm update_norm applied_norm "
    "rank drift cos_mean cos_std cos_p01 cos_p99 residual_norm",
    "geometry": "step edits layer cosine_counts neurons plane_x plane_y",
    "cases": "step edits scope case_id edited_at kind prompt_index nll_new nll_true success "
    "accuracy",
}
WHOLE = {"step", "edits", "records", "layer", "rank", "prompt_index", "edited_at"}
WHOLE |= {"peak_memory_bytes"}
TEXT = {"scope", "case_id", "kind"}
TRUTH = {"nonfinite", "skipped", "collapsed"}


def row(table: Table, step: int, **values: Any) -> dict[str, Any]:
    filled: dict[str, Any] = {}
    for name in SCHEMAS[table].names:
        filled[name] = (
            name if name in TEXT else True if name in TRUTH else 7 if name in WHOLE else 0.5
        )
    return {**filled, "step": step, "edits": 10 * step, **values}


def progress(step: int, state: recording.State = "running") -> Progress:
    return Progress(step=step, edits=10 * step, total=50, batch_size=10, state=state)


def commit(recorder: Recorder, step: int, **score: float) -> None:
    recorder.commit_step(
        step,
        steps=[row("steps", step, **score)],
        layers=[row("layers", step, layer=layer) for layer in (4, 5)],
        cases=[row("cases", step, prompt_index=index) for index in range(3)],
        progress=progress(step),
    )


@pytest.mark.parametrize("table", ["steps", "layers", "cases"])
def test_tables_have_the_documented_columns_and_types(table, tmp_path):
    commit(Recorder(tmp_path), 0)
    commit(Recorder(tmp_path), 1)
    frame = pandas.read_parquet(tmp_path / table)
    assert list(frame.columns) == COLUMNS[table].split()
    for name, dtype in frame.dtypes.items():
        if name in TEXT:
            assert pandas.api.types.is_string_dtype(dtype)
        else:
            expected = "bool" if name in TRUTH else "int64" if name in WHOLE else "float64"
            assert dtype == expected, name
    assert sorted(frame["step"].unique()) == [0, 1]
    assert len(frame) == 2 * {"steps": 1, "layers": 2, "cases": 3}[table]


def test_geometry_is_a_table_of_lists_for_the_steps_that_have_it(tmp_path):
    recorder = Recorder(tmp_path)
    portrait = {"cosine_counts": [3, 0], "neurons": [0, 9], "plane_x": [0.5, None], "plane_y": []}
    rows = [{"step": 0, "edits": 0, "layer": layer, **portrait} for layer in (4, 5)]
    recorder.commit_step(0, steps=[], layers=[], cases=[], geometry=rows, progress=progress(0))
    commit(recorder, 1)
    frame = read_table(tmp_path, "geometry")
    assert list(frame.columns) == COLUMNS["geometry"].split()
    assert frame["layer"].tolist() == [4, 5]
    assert frame["cosine_counts"][0].tolist() == [3, 0]
    assert math.isnan(frame["plane_x"][1][1])


def test_parts_are_named_by_their_step(tmp_path):
    recorder = Recorder(tmp_path)
    commit(recorder, 0)
    commit(recorder, 12)
    assert sorted(os.listdir(tmp_path / "layers")) == ["part-00000.parquet", "part-00012.parquet"]


def test_missing_numbers_are_null_and_read_as_nan(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.commit_step(
        1,
        steps=[row("steps", 1, specificity=None, score=math.nan, peak_memory_bytes=None)],
        layers=[row("layers", 1, rank=None, he=math.inf)],
        cases=[],
        progress=progress(1),
    )
    steps = pandas.read_parquet(tmp_path / "steps")
    assert steps[["specificity", "score", "peak_memory_bytes"]].isna().all(axis=None)
    layers = pandas.read_parquet(tmp_path / "layers")
    assert math.isnan(layers["rank"][0])
    assert layers["he"][0] == math.inf


@pytest.mark.parametrize(
    "change",
    [
        {"drop": "he"},
        {"scopee": "batch"},
        {"scope": None},
        {"records": None},
        {"records": "many"},
        {"efficacy": "high"},
        {"step": 4},
    ],
    ids=str,
)
def test_a_wrong_row_is_refused_and_nothing_is_written(change, tmp_path):
    wrong = row("steps", 1)
    wrong.pop(change.pop("drop", ""), None)
    wrong.update(change)
    recorder = Recorder(tmp_path)
    with pytest.raises(ValueError, match="steps"):
        recorder.commit_step(
            1,
            steps=[wrong],
            layers=[row("layers", 1)],
            cases=[row("cases", 1)],
            progress=progress(1),
        )
    assert not list(tmp_path.rglob("*.parquet"))
    assert recorder.progress() is None


def test_a_step_that_is_committed_again_replaces_its_rows(tmp_path):
    recorder = Recorder(tmp_path)
    commit(recorder, 1, score=1.0)
    commit(recorder, 1, score=2.0)
    assert pandas.read_parquet(tmp_path / "steps")["score"].tolist() == [2.0]


@pytest.mark.parametrize("written_before", range(4))
def test_a_process_killed_while_it_writes_leaves_whole_steps_only(
    written_before, tmp_path, monkeypatch
):
    recorder = Recorder(tmp_path)
    commit(recorder, 0)
    replace, seen = os.replace, []

    class Killed(BaseException):
        pass

    def kill_before(source: Path, target: Path) -> None:
        if len(seen) == written_before:
            raise Killed
        seen.append(Path(target).parent.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", kill_before)
    with pytest.raises(Killed):
        commit(recorder, 1)
    assert seen == ["cases", "layers", "steps"][:written_before]
    monkeypatch.undo()

    # The steps table, written last, says which steps there are; progress.json comes after it.
    assert read_progress(tmp_path) == progress(0)
    for table in ("steps", "layers", "cases"):
        assert set(read_table(tmp_path, table)["step"]) == {0}
    resumed = Recorder(tmp_path)
    resumed.rewind(0)
    for table in ("steps", "layers", "cases"):
        assert set(pandas.read_parquet(tmp_path / table)["step"]) == {0}
    commit(resumed, 1)
    assert set(read_table(tmp_path, "cases")["step"]) == {0, 1}


def test_readers_never_see_a_part_that_is_being_written(tmp_path):
    recorder = Recorder(tmp_path)
    commit(recorder, 0)
    with atomic_file(tmp_path / "steps" / "part-00001.parquet") as temporary:
        temporary.write_bytes(b"half a par")
        assert len(pandas.read_parquet(tmp_path / "steps")) == 1
        assert temporary.name.startswith(".")
        assert temporary.suffix != ".parquet"
        # What a killed process left behind is swept away by the next.
        Recorder(tmp_path)
        assert not temporary.exists()
        temporary.write_bytes(b"")


def test_rewinding_removes_later_steps_from_every_table(tmp_path):
    recorder = Recorder(tmp_path)
    for step in range(4):
        commit(recorder, step)
    recorder.rewind(1)
    for table in ("steps", "layers", "cases"):
        assert set(pandas.read_parquet(tmp_path / table)["step"]) == {0, 1}
    recorder.rewind(-1)
    assert not list(tmp_path.rglob("*.parquet"))


def test_progress_is_a_plain_json_file(tmp_path):
    recorder = Recorder(tmp_path)
    assert recorder.progress() is None
    recorder.write_progress(progress(3, "interrupted"))
    content = json.loads((tmp_path / "progress.json").read_text())
    assert content.pop("updated_at").endswith("+00:00")
    assert content == {
        "step": 3,
        "edits": 30,
        "total": 50,
        "batch_size": 10,
        "state": "interrupted",
    }
    assert recorder.progress() == progress(3, "interrupted")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": 1}', '{"updated_at": 1}'])
def test_a_damaged_progress_file_is_named(content, tmp_path):
    (tmp_path / "progress.json").write_text(content)
    with pytest.raises(SphereBenchError, match=r"progress\.json is damaged"):
        read_progress(tmp_path)


def test_reading_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(SphereBenchError, match="no steps of a run"):
        read_table(tmp_path, "steps")


def test_reading_a_damaged_part_names_it(tmp_path):
    commit(Recorder(tmp_path), 0)
    part = tmp_path / "steps" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-5])
    with pytest.raises(SphereBenchError, match="part-00000"):
        read_table(tmp_path, "steps")


def test_a_runs_name_is_not_read_as_a_column(tmp_path):
    recorder = Recorder(tmp_path / "alpha=0.5")
    commit(recorder, 0)
    assert list(read_table(recorder.folder, "steps").columns) == COLUMNS["steps"].split()


def checkpoint(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    storage = torch.randn(3, 6, generator=generator)
    return Checkpoint(
        step=step,
        weights={4: torch.randn(2, 3, generator=generator), 10: storage.T},
        editor={
            "keys": storage[:, 2:],
            "solver": {"4": {"past": torch.randn(3, 3, generator=generator).double()}},
            "alias": storage,
            "count": torch.tensor(step),
        },
        run_hash="abc",
    )


def assert_same(left: Any, right: Any) -> None:
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    else:
        assert left.dtype == right.dtype
        assert torch.equal(left, right)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    saved = checkpoint(20)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(saved)
    loaded = checkpoints.latest()
    assert loaded is not None
    assert (loaded.step, loaded.run_hash) == (20, "abc")
    assert list(loaded.weights) == [4, 10]
    assert_same(dict(saved.weights), dict(loaded.weights))
    assert_same(dict(saved.editor), dict(loaded.editor))
    assert sorted(path.name for path in (tmp_path / "checkpoints" / "step-20").iterdir()) == [
        "editor.safetensors",
        "state.json",
        "weights.safetensors",
    ]


def test_an_editor_without_memory_has_a_checkpoint_too(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Checkpoint(step=1, weights={0: torch.ones(2, 2)}))
    loaded = checkpoints.latest()
    assert loaded is not None
    assert loaded.editor == {}


def test_the_latest_checkpoints_and_the_milestones_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, milestones=[10])
    for step in (5, 10, 20, 100, 30):
        checkpoints.save(checkpoint(step))
    assert checkpoints.steps() == [10, 30, 100]
    assert checkpoints.load(10).step == 10


def test_a_milestone_stays_for_those_who_do_not_name_it(tmp_path):
    Checkpoints(tmp_path, keep=1, milestones=[2]).save(checkpoint(2))
    for step in (3, 4):
        Checkpoints(tmp_path, keep=1).save(checkpoint(step))
    assert Checkpoints(tmp_path).steps() == [2, 4]


def test_without_a_checkpoint_there_is_no_latest(tmp_path):
    assert Checkpoints(tmp_path / "none").latest() is None


def test_loading_a_step_without_a_checkpoint_names_those_there_are(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(checkpoint(10))
    with pytest.raises(SphereBenchError, match="no checkpoint of step 11; there is 10"):
        checkpoints.load(11)


@pytest.mark.parametrize("name", ["weights.safetensors", "editor.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "a flipped bit", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(name, damage, tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20):
        checkpoints.save(checkpoint(step))
    file = tmp_path / "step-20" / name
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(content[:-3])
    else:
        # Inside a tensor, or the name of a key of state.json.
        content[3 if name == "state.json" else -3] ^= 1
        file.write_bytes(content)
    loaded = checkpoints.latest()
    assert loaded is not None
    assert loaded.step == 10
    assert "step-20" in caplog.text
    with pytest.raises(SphereBenchError, match="damaged"):
        checkpoints.load(20)


def test_a_process_killed_while_it_saves_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(checkpoint(10))

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sphere_bench.checkpoints.write_json", kill)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(checkpoint(20))
    monkeypatch.undo()
    assert checkpoints.steps() == [10]
    (tmp_path / ".step-30.0.partial").mkdir()  # what a kill that nothing can catch leaves
    checkpoints.save(checkpoint(40))
    assert sorted(os.listdir(tmp_path)) == ["step-10", "step-40"]


@pytest.mark.parametrize("state", [{"a/b": torch.ones(1)}, {"a": 1}, {3: torch.ones(1)}])
def test_an_editors_state_that_cannot_be_stored_is_refused(state, tmp_path):
    with pytest.raises(ValueError, match="state"):
        Checkpoints(tmp_path).save(Checkpoint(step=1, weights={}, editor=state))


def test_files_can_be_read_by_whom_the_umask_allows(tmp_path):
    old = os.umask(0o022)
    try:
        Checkpoints(tmp_path / "checkpoints").save(checkpoint(1))
        commit(Recorder(tmp_path), 1)
    finally:
        os.umask(old)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}
