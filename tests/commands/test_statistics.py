"""Key statistics on the command line: given, held out, and on another number of threads."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sphere_bench.cli import main
from sphere_bench.config.composition import compose_config
from sphere_bench.run_folder.folder import RunFolder
from tests.run_tables import table

# Little, to be quick.
HELD_OUT = "editor.held_out_per_dimension=2"
QUICK = (
    *("run.name=run", "model.values.steps=1", "values.contexts=['{}']", "perplexity.tokens=50"),
    *("evaluation.seen=2", "evaluation.first=2", "edits.batch_size=2", "statistics.tokens=3000"),
    HELD_OUT,
)


def run(root: Path, *overrides: str) -> int:
    return main(["run", f"run.root={root}", *QUICK, *overrides])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file for each of the tiny GPT-2's edited layers."""
    folder = tmp_path_factory.mktemp("stats")
    for layer in (0, 1, 2):
        keys = np.random.default_rng(layer).normal(size=(6000, 512)) * np.linspace(0.02, 1, 512)
        name = f"transformer.h.{layer}.mlp.c_proj_float64_mom2_100000.npz"
        np.savez(folder / name, **{"mom2.mom2": keys.T @ keys, "mom2.count": len(keys)})
    return folder


def test_an_editor_with_a_null_space_reads_ten_times_the_text_and_holds_some_out() -> None:
    for editor in ("alphaedit", "betaedit", "nas"):
        config = compose_config([f"editor={editor}"]).editor
        assert (config.tokens_per_dimension, config.held_out_per_dimension) == (100, 10)
    for editor in ("memit", "rome", "encore", "rlsedit"):
        config = compose_config([f"editor={editor}"]).editor
        assert (config.tokens_per_dimension, config.held_out_per_dimension) == (10, 0)
    statistics = compose_config([]).statistics
    assert (statistics.tokens, statistics.order, statistics.tokens_per_text) == (
        None,
        "random",
        300,
    )
    published = compose_config(["statistics.order=file", "statistics.tokens_per_text=null"])
    assert published.statistics.tokens_per_text is None


def test_stats_computes_what_the_editors_run_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = (f"statistics.cache={tmp_path}", "statistics.tokens=600")
    assert main(["stats", *cache]) == 0
    assert capsys.readouterr().out.endswith(f"512-dimensional keys\nin {tmp_path}\n")
    assert len(list(tmp_path.iterdir())) == 1
    assert main(["stats", *cache, "editor=alphaedit", HELD_OUT]) == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_a_run_records_how_its_null_space_holds(tmp_path: Path) -> None:
    assert run(tmp_path, "editor=alphaedit", "edits.total=2") == 0
    facts = RunFolder(tmp_path / "run").provenance()
    found = facts["editor"]["null_space"]
    assert list(found) == ["0", "1", "2"]
    for each in found.values():
        assert 0 < each["directions"] < 512
        assert 0 < each["own"] < each["held_out"] < 1
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count("of the keys' energy on the text that it is from") == 3
    assert facts["threads"] == torch.get_num_threads()


def test_too_few_tokens_for_a_null_space_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("editor=alphaedit", "edits.total=2", "statistics.tokens=400")
    assert run(tmp_path, *few) == 0
    said = capsys.readouterr().err
    assert "the null space of layers 0, 1, 2 has more than twice the energy" in said
    assert "raise statistics.tokens" in said


def test_given_statistics_are_used_as_they_are_and_no_text_is_read(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (f"statistics.path={published}", "statistics.corpus=nowhere.txt")
    assert main(["stats", *given]) == 0
    assert capsys.readouterr().out.endswith(f"512-dimensional keys\nin {published}\n")
    assert run(tmp_path, *given, "editor=alphaedit", "edits.total=2") == 0
    facts = RunFolder(tmp_path / "run").provenance()
    assert list(facts["second_moments"]) == ["0", "1", "2"] and facts["corpora"] == {}
    expected = np.load(published / "transformer.h.1.mlp.c_proj_float64_mom2_100000.npz")
    small = np.linalg.eigvalsh(expected["mom2.mom2"] / expected["mom2.count"]) < 0.02
    assert facts["editor"]["null_space"]["1"]["directions"] == small.sum()
    assert facts["editor"]["null_space"]["1"]["held_out"] is None
    # 6,000 tokens for 512 dimensions.
    assert run(tmp_path, *given, "edits.total=2", "run.name=few", "statistics.tokens=6001") == 0
    assert "are of 6000 tokens, fewer than 6001" in capsys.readouterr().err


def test_given_statistics_are_known_by_their_content(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    shutil.copytree(published, one)
    assert run(tmp_path, f"statistics.path={one}", "edits.total=2") == 0
    # Elsewhere they are the same, also beside files that are not read.
    shutil.copytree(published, two)
    (two / "transformer.h.9.mlp.c_proj_float64_mom2_100000.npz").touch()
    assert run(tmp_path, f"statistics.path={two}", "edits.total=2") == 0
    assert run(tmp_path, f"statistics.path={two}", "edits.total=2") == 0
    assert "already done" in capsys.readouterr().out
    file = two / "transformer.h.1.mlp.c_proj_float64_mom2_100000.npz"
    np.savez(file, **{"mom2.mom2": np.eye(512), "mom2.count": 1})
    assert run(tmp_path, f"statistics.path={two}", "edits.total=2") == 2
    said = capsys.readouterr().err
    assert "holds another run (second_moments.1 " in said and said.count(" -> ") == 1


def test_a_run_that_goes_on_with_other_threads_warns_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = ("editor=alphaedit", "edits.total=4")
    assert run(tmp_path, "editor=alphaedit", "edits.total=2") == 0
    before = torch.get_num_threads()
    assert run(tmp_path, "editor=alphaedit", "edits.total=2") == 0
    assert "another threads" not in capsys.readouterr().err
    torch.set_num_threads(before + 1)
    try:
        assert run(tmp_path, *longer) == 0
    finally:
        torch.set_num_threads(before)
    said = capsys.readouterr().err
    line = f"going on with another threads {before} -> {before + 1}: numbers may differ in their"
    assert said.count(line) == 1
    assert table(tmp_path / "run", "steps")["edits"].max() == 4
    facts = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert facts["threads"] == before and facts["resumed"][-1]["threads"] == before + 1
