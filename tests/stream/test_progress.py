"""The bar of a run moves while a batch is edited."""

from pathlib import Path

import pytest

from sphere_bench.cli import main
from sphere_bench.stream.progress_bar import ProgressBar


@pytest.mark.parametrize("editor", ["memit", "rome"])
def test_the_bar_moves_within_a_batch(
    editor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    move = ProgressBar.move

    def look(self: ProgressBar, step: int, share: float) -> None:
        move(self, step, share)
        seen.append(int(self.bar.n))

    monkeypatch.setattr(ProgressBar, "move", look)
    few = ("edits.total=8", "edits.batch_size=4", "evaluation.seen=1", "perplexity.tokens=0")
    values = ("model.values.steps=6", "model.values.loss_threshold=0", "values.contexts=['{}']")
    assert main(["run", f"run.root={tmp_path}", f"editor={editor}", *few, *values]) == 0
    assert {1, 2, 3, 5, 6, 7} <= set(seen)
    assert seen == sorted(seen)
