"""Fine-tuning of the edited weights, free or within a small ball."""

from typing import Literal

from sphere_bench.editing.batch import Batch
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.training import Training
from sphere_bench.errors import check_above


class FineTuning:
    """FT, and FT-L with a norm constraint: Adam on the edited weights, as in MEMIT's code.

    A step goes through the batch in chunks. A chunk with a loss below the threshold is left out;
    the batch ends when its mean loss is below it.

    Args:
        setup: the run's model, weights and settings.
        steps: passes over the batch.
        learning_rate: Adam's.
        norm_constraint: bound on the change of every entry within a batch (FT-L), or ``None``.
        loss: ``teacher_forced`` predicts every target token from the prompt and the target tokens
            before it; ``last_position`` predicts all of them at the prompt's last token, which is a
            mistake of the published code.
        chunk: requests in one forward.
        loss_threshold: of a chunk and of the batch.

    Raises:
        SphereBenchError: a number is out of its range.
    """

    def __init__(
        self,
        setup: EditingSetup,
        steps: int = 25,
        learning_rate: float = 5e-4,
        norm_constraint: float | None = None,
        loss: Literal["teacher_forced", "last_position"] = "teacher_forced",
        chunk: int = 64,
        loss_threshold: float = 1e-2,
    ) -> None:
        self.training = Training(setup.loaded, steps, learning_rate, chunk, loss_threshold, loss)
        if norm_constraint is not None:
            check_above("editor.method.norm_constraint", norm_constraint, 0)
        self.norm_constraint = norm_constraint

    def edit(self, batch: Batch) -> None:
        texts = self.training.texts(batch.requests)
        self.training.tune(batch, texts, norm_constraint=self.norm_constraint)
