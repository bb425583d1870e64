import json
import math
import os
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.columns import Column, Table
from sphere_bench.files import atomic_file
from sphere_bench.run_folder.checkpoints import Checkpoint, Checkpoints
from sphere_bench.run_folder.folder import Progress, RunFolder, State
from sphere_bench.run_folder.table_files import STEPS_A_PART, count_rows, first_gap, read_table
from sphere_bench.run_folder.tables import Recorder

STEP = Column("step", "whole", "batches edited")
EDITS = Column("edits", "whole", "edits made")
TABLES = [
    Table(
        "steps",
        "one row for each step and scope",
        (
            STEP,
            EDITS,
            Column("scope", "text", "whose records"),
            Column("records", "whole", "how many"),
            Column("efficacy", "real", "a score"),
            Column("score", "real", "another"),
            Column("peak", "whole", "memory", optional=True),
            Column("skipped", "truth", "left out"),
        ),
    ),
    Table(
        "layers",
        "one row for each step and layer",
        (STEP, EDITS, Column("layer", "whole", "which"), Column("he", "real", "energy")),
    ),
    Table("cases", "one row for each prompt", (STEP, EDITS, Column("prompt", "whole", "which"))),
    Table(
        "geometry",
        "one row for each step",
        (STEP, EDITS, Column("counts", "wholes", "a list"), Column("x", "reals", "another")),
    ),
]
RUN = {
    "run": "memit-paper",
    "editor": "memit",
    "sphere": "paper",
    "alpha": 0.8,
    "model": "toy",
    "dataset": "facts",
    "seed": 3,
}
WRITTEN = ("steps", "layers", "cases")


def recorder_in(folder: Path) -> Recorder:
    return Recorder(RunFolder(folder), TABLES, RUN)


def steps_row(step: int, **values: Any) -> dict[str, Any]:
    filled = {"scope": "seen", "records": 7, "efficacy": 0.5, "score": 0.5, "peak": 9}
    return {"step": step, "edits": 10 * step, "skipped": False, **filled, **values}


def rows_of(step: int, **score: Any) -> dict[str, list[dict[str, Any]]]:
    position = {"step": step, "edits": 10 * step}
    return {
        "steps": [steps_row(step, **score)],
        "layers": [{**position, "layer": layer, "he": 0.25 * step} for layer in (4, 5)],
        "cases": [{**position, "prompt": index} for index in range(3)],
    }


def progress(step: int, state: State = "running") -> Progress:
    return Progress(step=step, edits=10 * step, total=50, batch_size=10, state=state)


def commit(recorder: Recorder, step: int, **score: float) -> None:
    recorder.commit_step(step, rows_of(step, **score), progress(step))


def test_a_table_has_the_runs_columns_and_then_its_own_with_their_types(tmp_path):
    commit(recorder_in(tmp_path), 0)
    commit(recorder_in(tmp_path), 1)
    frame = pandas.read_parquet(tmp_path / "steps")
    assert list(frame.columns) == [*RUN, *(column.name for column in TABLES[0].columns)]
    assert {name: frame[name].unique().tolist() for name in RUN} == {
        name: [value] for name, value in RUN.items()
    }
    for name in ("run", "editor", "sphere", "model", "dataset"):
        assert frame[name].dtype == "category"
    types = {"records": "int64", "efficacy": "float64", "skipped": "bool", "seed": "int64"}
    assert {name: str(frame[name].dtype) for name in types} == types
    assert frame["step"].tolist() == [0, 1]


def test_the_tables_of_several_runs_are_read_as_one(tmp_path):
    for seed, alpha in ((0, None), (1, 0.5)):
        run = {**RUN, "run": f"run{seed}", "alpha": alpha, "seed": seed}
        recorder = Recorder(RunFolder(tmp_path / f"run{seed}"), TABLES, run)
        for step in (0, 1):
            commit(recorder, step)
    parts = sorted(str(part) for part in tmp_path.glob("*/steps/*.parquet"))
    frame = pandas.read_parquet(parts)
    assert frame.groupby("run", observed=True)["step"].count().to_dict() == {"run0": 2, "run1": 2}
    assert frame["alpha"].isna().tolist() == [True, True, False, False]


def test_a_table_of_lists_has_rows_for_the_steps_that_have_some(tmp_path):
    recorder = recorder_in(tmp_path)
    row = {"step": 0, "edits": 0, "counts": [3, 0], "x": [0.5, None]}
    recorder.commit_step(0, {**rows_of(0), "geometry": [row]}, progress(0))
    commit(recorder, 1)
    frame = read_table(recorder.folder, "geometry")
    assert frame["step"].tolist() == [0]
    assert frame["counts"][0].tolist() == [3, 0]
    assert math.isnan(frame["x"][0][1])


def test_a_thousand_steps_leave_fewer_than_forty_files_and_lose_no_row(tmp_path):
    tables = [table for table in TABLES if table.name in ("steps", "cases")]
    recorder = Recorder(RunFolder(tmp_path), tables, RUN)
    for step in range(1001):
        made = rows_of(step, efficacy=float(step))
        recorder.commit_step(
            step, {table.name: made[table.name] for table in tables}, progress(step)
        )
    for table, of_step in (("steps", 1), ("cases", 3)):
        assert len(os.listdir(tmp_path / table)) < 40
        frame = pandas.read_parquet(tmp_path / table)
        assert frame["step"].tolist() == [step for step in range(1001) for _ in range(of_step)]
    assert read_table(recorder.folder, "steps")["efficacy"].tolist() == list(
        map(float, range(1001))
    )


def test_a_part_is_named_by_its_first_step(tmp_path):
    recorder = recorder_in(tmp_path)
    commit(recorder, STEPS_A_PART - 1)
    commit(recorder, STEPS_A_PART)
    assert sorted(os.listdir(tmp_path / "layers")) == ["part-00000.parquet", "part-00032.parquet"]


def test_missing_numbers_are_null_and_read_as_nan(tmp_path):
    recorder = recorder_in(tmp_path)
    rows = rows_of(1, efficacy=None, score=math.nan, peak=None)
    rows["layers"][0]["he"] = math.inf
    recorder.commit_step(1, rows, progress(1))
    steps = pandas.read_parquet(tmp_path / "steps")
    assert steps[["efficacy", "score", "peak"]].isna().all(axis=None)
    assert pandas.read_parquet(tmp_path / "layers")["he"][0] == math.inf


@pytest.mark.parametrize(
    "change",
    [
        {"drop": "records"},
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
    wrong = steps_row(1)
    wrong.pop(change.pop("drop", ""), None)
    wrong.update(change)
    recorder = recorder_in(tmp_path)
    with pytest.raises(ValueError, match="steps"):
        recorder.commit_step(1, {**rows_of(1), "steps": [wrong]}, progress(1))
    assert not list(tmp_path.rglob("*.parquet"))
    assert recorder.folder.progress() is None


def test_a_step_that_is_committed_again_replaces_its_rows(tmp_path):
    recorder = recorder_in(tmp_path)
    for step in range(3):
        commit(recorder, step, score=1.0)
    commit(recorder, 1, score=2.0)
    frame = pandas.read_parquet(tmp_path / "steps")
    assert frame[["step", "score"]].to_numpy().tolist() == [[0, 1.0], [1, 2.0], [2, 1.0]]
    assert recorder.rows == {"steps": 3, "layers": 6, "cases": 9, "geometry": 0}


@pytest.mark.parametrize("written_before", range(4))
def test_a_process_killed_while_it_writes_leaves_whole_steps_only(
    written_before, tmp_path, monkeypatch
):
    recorder = recorder_in(tmp_path)
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
    assert seen == ["layers", "cases", "steps"][:written_before]
    monkeypatch.undo()

    # The steps table, written last, says which steps there are; progress.json comes after it.
    found = recorder.folder.progress()
    assert found is not None and found.step == 0
    for table in WRITTEN:
        assert set(read_table(recorder.folder, table)["step"]) == {0}
    resumed = recorder_in(tmp_path)
    resumed.rewind(0)
    for table in WRITTEN:
        assert set(pandas.read_parquet(tmp_path / table)["step"]) == {0}
    commit(resumed, 1)
    assert set(read_table(recorder.folder, "cases")["step"]) == {0, 1}


def test_readers_never_see_a_part_that_is_being_written(tmp_path):
    commit(recorder_in(tmp_path), 0)
    with atomic_file(tmp_path / "steps" / "part-00032.parquet") as temporary:
        temporary.write_bytes(b"half a par")
        assert len(pandas.read_parquet(tmp_path / "steps")) == 1
        assert temporary.name.startswith(".")
        assert temporary.suffix != ".parquet"
        # What a killed process left behind is swept away by the next.
        recorder_in(tmp_path)
        assert not temporary.exists()
        temporary.write_bytes(b"")


def test_rewinding_removes_later_steps_from_every_table(tmp_path):
    recorder = recorder_in(tmp_path)
    for step in (0, 1, 2, 3, 40):
        commit(recorder, step)
    recorder.rewind(1)
    for table in WRITTEN:
        assert set(pandas.read_parquet(tmp_path / table)["step"]) == {0, 1}
    assert recorder.rows["cases"] == count_rows(recorder.folder, "cases") == 6
    recorder.rewind(-1)
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("damage", ["gone", "torn"])
@pytest.mark.parametrize("table", WRITTEN)
def test_the_first_step_of_a_lost_file_is_found(damage, table, tmp_path):
    recorder = recorder_in(tmp_path)
    for step in (0, 31, 32, 63, 64):
        commit(recorder, step)
    assert first_gap(recorder.folder) is None
    part = recorder.folder.part(table, 32)
    if damage == "gone":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:-20])
    assert first_gap(recorder.folder) == 32
    # Another process removes what cannot be read, and finds the same.
    assert first_gap(recorder_in(tmp_path).folder) == 32


def test_progress_is_a_plain_json_file(tmp_path):
    recorder = recorder_in(tmp_path)
    assert recorder.folder.progress() is None
    recorder.write_progress(progress(3, "interrupted"))
    content = json.loads((tmp_path / "progress.json").read_text())
    assert content.pop("updated_at").endswith("+00:00")
    assert content == {
        "step": 3,
        "edits": 30,
        "total": 50,
        "batch_size": 10,
        "state": "interrupted",
        "rows": {"layers": 0, "cases": 0, "geometry": 0, "steps": 0},
    }


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": 1}', '{"updated_at": 1}'])
def test_a_damaged_progress_file_is_named(content, tmp_path):
    (tmp_path / "progress.json").write_text(content)
    with pytest.raises(SphereBenchError, match=r"progress\.json is damaged"):
        RunFolder(tmp_path).progress()


def test_reading_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(SphereBenchError, match="no steps of a run"):
        read_table(RunFolder(tmp_path), "steps")


def test_reading_a_damaged_part_names_it(tmp_path):
    recorder = recorder_in(tmp_path)
    commit(recorder, 0)
    part = tmp_path / "steps" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-5])
    with pytest.raises(SphereBenchError, match="part-00000"):
        read_table(recorder.folder, "steps")


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path):
    recorder = recorder_in(tmp_path / "beta=0.5")
    commit(recorder, 0)
    assert "beta" not in read_table(recorder.folder, "steps").columns


def test_files_can_be_read_by_whom_the_umask_allows(tmp_path):
    old = os.umask(0o022)
    try:
        Checkpoints(tmp_path / "checkpoints").save(Checkpoint(1, {0: torch.ones(2, 2)}))
        commit(recorder_in(tmp_path), 1)
    finally:
        os.umask(old)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}


def test_a_step_that_could_not_be_written_leaves_the_counts_of_what_is_there(tmp_path, monkeypatch):
    recorder = recorder_in(tmp_path)
    for step in range(3):
        commit(recorder, step)
    replace, seen = os.replace, []

    def full_once(source: Path, target: Path) -> None:
        seen.append(target)
        if len(seen) == 2:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_once)
    with pytest.raises(SphereBenchError, match="make room"):
        commit(recorder, 3)
    monkeypatch.undo()
    recorder.write_progress(progress(2, "interrupted"))
    assert first_gap(recorder.folder) is None
    assert recorder.rows["cases"] == 9


def test_rows_that_are_missing_from_whole_files_are_the_last_ones(tmp_path):
    recorder = recorder_in(tmp_path)
    for step in (0, 31, 32, 40):
        commit(recorder, step)
    recorder.rewind(32)
    recorder.folder.write_progress(Progress(40, 400, 500, 10, "running", {"steps": 4}))
    assert first_gap(recorder.folder) == 32
