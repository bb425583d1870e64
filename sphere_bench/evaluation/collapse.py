"""When a model counts as collapsed: it takes no edits any more, or no longer knows how to write."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Collapse:
    """Thresholds; a model has collapsed once all that are set have been passed.

    Attributes:
        efficacy: percent; passed by a lower efficacy of the batch just edited.
        perplexity: passed by a perplexity of more than this times the unedited model's, and by one
            that is no number.
    """

    efficacy: float | None = None
    perplexity: float | None = None

    @property
    def is_set(self) -> bool:
        """Whether there is a threshold at all."""
        return self.efficacy is not None or self.perplexity is not None

    def reached(self, efficacy: float, perplexity: float, unedited_perplexity: float) -> bool:
        """Whether a model with these figures has collapsed; never without a threshold."""
        passed = []
        if self.efficacy is not None:
            passed.append(efficacy < self.efficacy)
        if self.perplexity is not None:
            passed.append(not perplexity <= self.perplexity * unedited_perplexity)
        return bool(passed) and all(passed)
