"""What decides results: by content, not by place."""

import hashlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sphere_bench.config.composition import compose_config
from sphere_bench.config.identity import config_hash, corpora, foreign_sources, identity

TRANSFORMS = ("rect", "prune", "revive")


def content(*overrides: str) -> dict[str, Any]:
    return asdict(compose_config(overrides))


def test_the_hash_sees_values_and_not_the_order_of_keys() -> None:
    assert config_hash({"b": 1, "a": {"d": 2, "c": 3}}) == config_hash(
        {"a": {"c": 3, "d": 2}, "b": 1}
    )
    assert config_hash({"a": 1}) != config_hash({"a": 2})


def test_a_number_counts_where_it_is_used_and_not_where_it_is_from() -> None:
    found = identity(content("editor=ultraedit"))
    assert found["editor.method.learning_rate"] == 3e-3
    assert found["editor.layers"] == [4, 5]
    assert not any(key.startswith(("model.editors", "model.layers")) for key in found)
    assert "editor.sphere.alpha" not in found


def test_the_precision_of_products_decides_once_it_is_not_the_highest() -> None:
    key = "model.matmul_precision"
    assert key not in identity(content())
    assert identity(content(f"{key}=high"))[key] == "high"
    assert "-matmul_precisionhigh-" in compose_config([f"{key}=high"]).run.name


def test_compensation_decides_where_something_changes_what_an_editor_writes() -> None:
    key, on = "editor.compensate", "editor.compensate=true"
    for inert in ([], ["sphere=off"], ["sphere=off", on]):
        assert key not in identity(content(*inert))
    assert identity(content("sphere=off", on)) == identity(content("sphere=off"))
    for acting in (["sphere=paper"], *(["sphere=off", f"transform={name}"] for name in TRANSFORMS)):
        assert identity(content(*acting, on)) == {**identity(content(*acting)), key: True}
    assert "-compensatetrue-" in compose_config([on]).run.name


@pytest.mark.parametrize(
    ("key", "acting"),
    [
        ("statistics.corpus", "statistics.corpus"),
        ("perplexity.corpus", "probes.perplexity.corpus"),
    ],
)
def test_a_corpus_is_known_by_its_content(key: str, acting: str, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.txt").write_text("Someone lives in Rome.\n")
    one = content(f"{key}={tmp_path}/one/one.txt")
    two = content(f"{key}={tmp_path}/two/two.txt")
    assert identity(one) == identity(two)
    assert (
        corpora(one)
        == corpora(two)
        == {acting: hashlib.sha256(b"Someone lives in Rome.\n").hexdigest()}
    )
    (tmp_path / "two" / "two.txt").write_text("Someone lives in Paris.\n")
    assert corpora(one) != corpora(two)


def test_a_corpus_that_is_no_file_is_known_by_its_name() -> None:
    hub = content("statistics.corpus=wikimedia/wikipedia:20231101.en")
    assert identity(hub)["statistics.corpus"] == "wikimedia/wikipedia:20231101.en"
    assert corpora(hub) == {}
    assert identity(content())["statistics.corpus"] == "bundled"


def test_a_corpus_that_is_missing_or_not_read_has_no_hash(tmp_path: Path) -> None:
    assert corpora(content(f"statistics.corpus={tmp_path}/nowhere.txt")) == {}
    (tmp_path / "there.txt").touch()
    unread = (f"perplexity.corpus={tmp_path}/there.txt", "perplexity.tokens=0")
    assert corpora(content(*unread)) == {}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module and a package outside of this one."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sources_mine.py").write_text("class Rect:\n    pass\n")
    package = tmp_path / "sources_package"
    package.mkdir()
    (package / "__init__.py").write_text("from sources_package.inner import Probe\n")
    (package / "inner.py").write_text("class Probe:\n    def make(): pass\n")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("sources_")]:
        del sys.modules[name]


def digest(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def test_sources_of_ones_own_are_found_however_deep(mine: Path) -> None:
    found = foreign_sources(
        {
            "editor": {"method": {"transforms": [{"_target_": "sources_mine.Rect"}]}},
            "dataset": {"loader": {"_target_": "sources_package.inner.Probe.make", "x": [[1]]}},
            "probes": {"mine": {"_target_": "sources_package.Probe", "every": 1}},
            "judge": {"_target_": "sphere_bench.editing.transforms.Rect"},
            "model": {"shape": {"_target_": "no.such.thing"}},
            "values": {"sum": {"_target_": "builtins.sum"}},
        }
    )
    package = mine / "sources_package"
    assert found == {
        "sources_mine.Rect": digest(mine / "sources_mine.py"),
        "sources_package.Probe": digest(package / "__init__.py", package / "inner.py"),
        "sources_package.inner.Probe.make": digest(package / "inner.py"),
    }


def test_a_source_that_was_edited_is_another_one_and_the_name_is_the_same(mine: Path) -> None:
    chosen = ("editor.method.transforms=[{_target_: sources_mine.Rect}]",)
    before, name = foreign_sources(content(*chosen)), compose_config(chosen).run.name
    (mine / "sources_mine.py").write_text("class Rect:\n    x = 1\n")
    after = foreign_sources(content(*chosen))
    assert before.keys() == after.keys() == {"sources_mine.Rect"}
    assert before != after
    assert compose_config(chosen).run.name == name


def test_a_probe_that_is_left_out_counts_for_nothing(mine: Path) -> None:
    node = {"_target_": "sources_mine.Rect"}
    assert foreign_sources({"probes": {"mine": {**node, "every": 1}}})
    assert foreign_sources({"probes": {"mine": {**node, "every": 0}}}) == {}


TEXT = {"corpus", "tokens", "order", "tokens_per_text", "max_length", "precision"}


def test_what_is_read_for_key_statistics_counts_where_it_is_read(tmp_path: Path) -> None:
    found = identity(content())
    assert {f"statistics.{name}" for name in TEXT} <= found.keys()
    assert found["editor.tokens_per_dimension"] == 10
    assert "editor.held_out_per_dimension" not in found  # it is only measured
    changes = ("order=file", "tokens_per_text=null", "tokens=99")
    for change in changes:
        assert identity(content(f"statistics.{change}")) != found
    # A number of tokens leaves nothing for the editor to decide.
    assert "editor.tokens_per_dimension" not in identity(content("statistics.tokens=99"))
    # What the model writes has no order of its own.
    written = ("statistics.corpus=generated", "statistics.order=file")
    assert identity(content(*written)) == identity(content(written[0]))


def test_given_statistics_count_by_their_content_alone(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("Someone lives in Rome.\n")
    one = content(f"statistics.path={tmp_path}/one", f"statistics.corpus={corpus}")
    two = content(f"statistics.path={tmp_path}/two", "statistics.tokens=7")
    assert identity(one) == identity(two) != identity(content())
    assert not any(key.startswith("statistics") for key in identity(one))
    assert "editor.tokens_per_dimension" not in identity(one)
    assert corpora(one) == {}


def test_tasks_and_their_data_count_by_the_contents_of_their_folders(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "below").mkdir(parents=True)
        (tmp_path / name / "below" / "task.yaml").write_text("task: mine\n")
        (tmp_path / name / "picture.png").write_text(name)
    careful = "evaluation=careful"
    runs = [
        content(careful, f"probes.ability.{key}={tmp_path / name}")
        for key in ("include_path", "data_path")
        for name in ("one", "two")
    ]
    assert len({str(identity(run)) for run in runs[:2]}) == 1
    assert corpora(runs[0]) == corpora(runs[1]) != corpora(content(careful))
    assert list(corpora(runs[2])) == ["probes.ability.data_path"]
    (tmp_path / "two" / "below" / "task.yaml").write_text("task: other\n")
    assert corpora(runs[0]) != corpora(runs[1])
    # A file among the tasks: its name and its content.
    named = content(careful, f"probes.ability.tasks=[arc_easy,{tmp_path}/one/below/task.yaml]")
    assert list(corpora(named)) == ["probes.ability.tasks"]
    before = corpora(named)
    (tmp_path / "one" / "below" / "task.yaml").write_text("task: another\n")
    assert corpora(named) != before
    assert identity(named) != identity(content(careful, "probes.ability.tasks=[arc_easy]"))
    # A probe of one's own may mean something else by that name.
    mine = content("+probes.mine={_target_: mine.Probe, every: 1, tasks: [1, null]}")
    assert corpora(mine) == {} and "probes.mine.tasks" in identity(mine)
    # How many prompts are in a forward decides nothing, and which tasks does.
    assert identity(content(careful, "probes.ability.rows_per_batch=3")) == identity(
        content(careful)
    )
    assert identity(content(careful, "model.ability_tasks=[arc_easy]")) != identity(
        content(careful)
    )
