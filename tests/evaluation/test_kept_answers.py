"""Asked once of the unedited model: its answers are kept, and are nobody else's."""

import errno
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sphere_bench.data.records import EditDataset
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation import harness
from sphere_bench.evaluation.ability import Ability
from sphere_bench.evaluation.probe import Moment, ProbeSetup
from sphere_bench.models.fingerprint import model_fingerprint
from sphere_bench.models.loading import load_model

pytestmark = pytest.mark.skipif(
    not harness.is_installed(), reason="general ability needs the extra lm-eval"
)


@pytest.fixture(scope="module")
def unkept() -> ProbeSetup:
    loaded = load_model("bundled", device="cpu")
    dataset = EditDataset("none", (), "accuracy", "mean_tokens")
    weights = EditedWeights(loaded.layout, [1])
    return ProbeSetup(loaded, dataset, weights, 0, 4096, lambda corpus, key: [])


@pytest.fixture
def setup(unkept: ProbeSetup, tmp_path: Path) -> ProbeSetup:
    fingerprint = model_fingerprint(unkept.loaded)
    return replace(unkept, cache=tmp_path / "cache", fingerprint=fingerprint)


@pytest.fixture
def forwards(unkept: ProbeSetup) -> Iterator[list[int]]:
    """A number for every forward of the model."""
    counted: list[int] = []
    hook = unkept.loaded.model.register_forward_hook(lambda *_: counted.append(1))
    yield counted
    hook.remove()


def measured(setup: ProbeSetup, step: int = 0, items: int = 6, **own: Any) -> list[dict[str, Any]]:
    rows = Ability(setup, ["tiny_kinds"], items=items, **own).measure(Moment(step, step, 1, {}))
    return [{**row, "seconds": None} for row in rows.tables["abilities"]]


def kept(setup: ProbeSetup) -> list[Path]:
    assert setup.cache is not None
    return sorted(setup.cache.rglob("*.*"))


def test_the_next_run_does_not_ask_again(
    setup: ProbeSetup, unkept: ProbeSetup, forwards: list[int]
) -> None:
    first = measured(setup)
    assert forwards and len(kept(setup)) == 1
    forwards.clear()
    (file,) = kept(setup)
    before = file.stat().st_mtime_ns
    assert measured(setup) == first
    assert not forwards and file.stat().st_mtime_ns == before
    assert first == measured(unkept) == measured(setup, step=1)
    assert forwards


def test_of_a_model_that_is_not_known_nothing_is_kept(setup: ProbeSetup) -> None:
    measured(replace(setup, fingerprint=None))
    assert kept(setup) == []


def test_what_is_asked_otherwise_or_of_another_model_has_a_file_of_its_own(
    setup: ProbeSetup, unkept: ProbeSetup, forwards: list[int]
) -> None:
    measured(setup)
    measured(setup, rows_per_batch=4)
    measured(setup, items=5)
    assert len(kept(setup)) == 3
    weight = setup.weights.current[1].clone()
    try:
        setup.weights.write(1, 0 * weight)
        forwards.clear()
        other = measured(replace(setup, fingerprint=model_fingerprint(setup.loaded)))
        assert forwards and len(kept(setup)) == 4
        assert other == measured(unkept)
    finally:
        setup.weights.write(1, weight)


def test_a_damaged_file_is_made_anew(
    setup: ProbeSetup, forwards: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    first = measured(setup)
    (file,) = kept(setup)
    for damage in (b"", b"no database", file.read_bytes()[:5000]):
        file.write_bytes(damage)
        forwards.clear()
        assert measured(setup) == first
        assert forwards
    # An empty one is a database, without answers.
    assert caplog.messages == [f"{file} is damaged: it is made again"] * 2
    forwards.clear()
    measured(setup)
    assert not forwards


def test_a_run_that_ends_in_between_leaves_nothing(
    setup: ProbeSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(setup.loaded.model, "forward", ends)
    with pytest.raises(KeyboardInterrupt):
        measured(setup)
    assert kept(setup) == []


def test_where_nothing_can_be_kept_a_warning_says_so(
    setup: ProbeSetup, unkept: ProbeSetup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert measured(setup) == measured(unkept)
    (warning,) = caplog.messages
    assert warning.startswith(f"cannot keep answers in {tmp_path}/cache/abilities: ")


def test_a_full_disk_is_named(setup: ProbeSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sphere_bench.files.os.replace", full)
    with pytest.raises(SphereBenchError, match="make room and run the same command"):
        measured(setup)
