from pathlib import Path

import pytest

from sphere_bench.cli import main
from sphere_bench.report.drawing import Drawing
from tests.report.synthetic import write_run


@pytest.fixture
def unarranged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures as drawn: arranging them is half of the time."""
    # Not "none", a stand-in for which each figure would be drawn twice.
    monkeypatch.setattr(
        Drawing, "__post_init__", lambda drawing: drawing.figure.set_layout_engine(None)
    )


@pytest.fixture(scope="session")
def multirun_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two editors x SPHERE off and on x two seeds, its other files beside it."""
    folder = tmp_path_factory.mktemp("multirun")
    for editor in ("memit", "alphaedit"):
        for sphere in ("off", "paper"):
            for seed in (0, 1):
                write_run(folder / "runs", editor=editor, sphere=sphere, seed=seed)
    page = folder / "report.html"
    assert main(["report", str(folder / "runs"), "--out", str(page)]) == 0
    return page
