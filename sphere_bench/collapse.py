"""When a model is given up: it takes no edits any more, or no longer knows how to write."""

from dataclasses import dataclass
from pathlib import Path

from sphere_bench.recording import read_table


@dataclass(frozen=True)
class Collapse:
    """Thresholds that end a run once all that are set have been passed.

    Attributes:
        efficacy: percent; passed by a lower efficacy of the batch just edited.
        perplexity: passed by a perplexity of more than this times the unedited model's, and by one
            that is no number.
    """

    efficacy: float | None = None
    perplexity: float | None = None

    def reached(self, efficacy: float, perplexity: float, unedited_perplexity: float) -> bool:
        """Whether a model with these figures has collapsed; never without a threshold."""
        passed = []
        if self.efficacy is not None:
            passed.append(efficacy < self.efficacy)
        if self.perplexity is not None:
            passed.append(not perplexity <= self.perplexity * unedited_perplexity)
        return bool(passed) and all(passed)

    def reached_in(self, folder: Path, step: int) -> bool:
        """Whether the run in ``folder`` had collapsed after ``step``, by what it recorded."""
        if step < 1 or self == Collapse():
            return False
        steps = read_table(folder, "steps")
        steps = steps[(steps["scope"] == "batch") & (steps["records"] > 0)].set_index("step")
        # A batch that was left out leaves the model as it was.
        if step not in steps.index or steps.at[step, "skipped"]:
            return False
        return self.reached(
            steps.at[step, "efficacy"], steps.at[step, "perplexity"], steps.at[0, "perplexity"]
        )
