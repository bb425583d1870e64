"""The eigen-decomposition of C is made once, whatever run asks for it."""

from pathlib import Path

import pytest
import torch

from sphere_bench.editing.locate_then_edit import LocateThenEdit
from sphere_bench.editing.solvers import LeastSquares, NullSpace
from sphere_bench.editing.statistics import decompositions
from sphere_bench.editing.statistics.decompositions import CachedDecompositions
from tests.golden_numbers import LAYERS, load_golden


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The widths that are decomposed; every one is worth keeping."""
    monkeypatch.setattr(decompositions, "_WORTH_KEEPING", 1)
    made: list[int] = []
    eigh = torch.linalg.eigh

    def counted(matrix: torch.Tensor) -> object:
        made.append(len(matrix))
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", counted)
    return made


def test_a_later_run_takes_the_null_space_from_the_cache(tmp_path: Path, calls: list[int]) -> None:
    golden = load_golden("tiny-llama")
    setup = golden.setup(decompose=CachedDecompositions(tmp_path / "new"))
    bases = []
    for _ in range(2):
        solver = LeastSquares(ridge=1.0, null_space=NullSpace(0.3, "share"))
        LocateThenEdit(setup, solver)
        bases.append(solver.bases)
    assert calls == [256] * len(LAYERS)
    for layer, basis in bases[0].items():
        assert torch.equal(bases[1][layer], basis)


def test_a_damaged_file_is_made_again(
    tmp_path: Path, calls: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    cached = CachedDecompositions(tmp_path)
    matrix = torch.diag(torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64))
    expected = cached(matrix)
    assert expected.eigenvalues.tolist() == [1.0, 2.0, 3.0]
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for torn in (whole[:40], whole[:-8] + bytes(8)):
        calls.clear()
        file.write_bytes(torn)
        assert torch.equal(cached(matrix).eigenvectors, expected.eigenvectors)
        assert calls == [3] and "is damaged" in caplog.text
    assert file.read_bytes() == whole


def test_small_matrices_are_not_kept(tmp_path: Path) -> None:
    CachedDecompositions(tmp_path)(torch.eye(64))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, calls: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert CachedDecompositions(tmp_path / "file")(torch.eye(2)).eigenvalues.tolist() == [1.0, 1.0]
    assert calls == [2] and "cannot keep eigenvectors" in caplog.text
