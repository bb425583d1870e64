import json
from pathlib import Path

import pytest

from sphere_bench.errors import SphereBenchError
from sphere_bench.run_folder.folder import (
    FORMAT,
    EarlierVersionError,
    FolderInUseError,
    Progress,
    RunFolder,
)

FACTS = {
    "config": {"seed": 0},
    "packages": {},
    "device": {"torch_device": "cpu", "name": None},
    "threads": 2,
    "records": 10,
    "dataset_fingerprint": "d",
    "model_files": None,
    "statistics_files": None,
}


def test_a_resumed_run_keeps_its_first_provenance(tmp_path, caplog):
    folder = RunFolder(tmp_path)
    folder.begin({**FACTS, "started_at": "first"})
    folder.resume({**FACTS, "started_at": "second"})
    other = {"device": {"torch_device": "cuda", "name": "A GPU"}, "threads": 1}
    assert caplog.text == ""
    folder.resume({**FACTS, "started_at": "third", **other, "records": 20})
    assert folder.provenance() == {
        **FACTS,
        "format": FORMAT,
        "records": 20,
        "started_at": "first",
        "resumed": [
            {"started_at": "second"},
            {"started_at": "third", **other, "records": 20},
        ],
    }
    assert "another device cpu -> cuda, A GPU and threads 2 -> 1: numbers may differ" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize("content", ["", '{"started_at"', "[]", "null", '{"config": {}}'])
def test_a_damaged_provenance_file_is_named(content, tmp_path):
    (tmp_path / "provenance.json").write_text(content)
    with pytest.raises(SphereBenchError, match=r"provenance\.json, .* is missing or damaged"):
        RunFolder(tmp_path).provenance()


def test_a_run_of_another_version_is_recognised(tmp_path):
    (tmp_path / "provenance.json").write_text(
        json.dumps({**FACTS, "resumed": [], "sphere_bench": "0.1.0"})
    )
    with pytest.raises(EarlierVersionError, match=r"another version of sphere-bench, 0\.1\.0, whi"):
        RunFolder(tmp_path).provenance()


def test_a_run_that_no_process_has_is_not_running(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.state() is None
    with folder.locked():
        folder.begin(FACTS)
        folder.write_progress(Progress(1, 10, 50, 10, "running"))
        assert folder.state() == "running"
    assert folder.state() == "interrupted"
    folder.write_progress(Progress(5, 50, 50, 10, "done"))
    assert folder.state() == "done"


def test_a_run_that_never_began_leaves_no_lock(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        assert folder.is_in_use
        with pytest.raises(FolderInUseError, match="in use"), RunFolder(folder.path).locked():
            pass
    assert list(folder.path.iterdir()) == []
    assert not folder.is_in_use


def test_discarding_leaves_what_is_not_the_runs(tmp_path):
    folder = RunFolder(tmp_path)
    folder.begin(FACTS)
    folder.write_progress(Progress(1, 10, 50, 10, "done"))
    for name in ("steps/part-00000.parquet", "thoughts/part-00032.parquet", "tensorboard/events"):
        file = tmp_path / name
        file.parent.mkdir()
        file.touch()
    (tmp_path / "checkpoints" / "step-1").mkdir(parents=True)
    mine = tmp_path / "mine" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    folder.discard(["tensorboard"])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]


def test_a_folder_may_not_be_a_link_out_of_the_results(tmp_path):
    outside, results = tmp_path / "outside", tmp_path / "results"
    for folder in (outside, results, results / "other"):
        folder.mkdir()
    for link, target in (("out", outside), ("up", ".."), ("self", "."), ("root", "/")):
        (results / link).symlink_to(target)
        with pytest.raises(SphereBenchError, match="is a link out of"):
            RunFolder(results / link).check_location(str(results))
    (results / "inside").symlink_to("other")
    for name in ("inside", "new"):
        RunFolder(results / name).check_location(str(results))


def test_the_parts_of_a_table_come_by_their_first_step(tmp_path):
    folder = RunFolder(tmp_path)
    for first in (64, 0, 100_032):
        file = folder.part("steps", first)
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert list(folder.parts("steps")) == [0, 64, 100_032]
    assert folder.table_names() == ["steps"]
    assert folder.part("steps", 64) == Path(tmp_path / "steps" / "part-00064.parquet")
