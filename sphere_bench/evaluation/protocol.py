"""Who is evaluated after which step, and the rows that come of it."""

import heapq
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sphere_bench.data.records import (
    HEADLINES,
    Accuracy,
    EditDataset,
    EvalPrompt,
    Headline,
    Record,
)
from sphere_bench.evaluation import metrics
from sphere_bench.evaluation.scoring import TargetScore, score_targets
from sphere_bench.models.loading import LoadedModel


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found.

    Attributes:
        steps_rows: one a scope, the metrics in percent; NaN where no prompt has a value.
        cases_rows: one a scope, record and prompt; ``None`` where a prompt has no such target.
    """

    steps_rows: list[dict[str, Any]]
    cases_rows: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class PromptResult:
    """One prompt's numbers; without a target ``None`` for its NLL, NaN for the metrics."""

    prompt: EvalPrompt
    nll_new: float | None
    nll_true: float | None
    success: float
    accuracy: float


class Evaluator:
    """Scores the records of the scopes that belong to a step.

    Scopes are ``batch`` (just edited), ``seen`` (a sample of all edits so far), ``first`` (the
    first batch, for retention) and, at milestones, ``all`` edits so far. At step 0, on the
    unedited model, the first batch stands in for each, and the whole run for ``all``. ``seen`` is
    the same records from step to step as far as it can: each record has a random priority of its
    own, and the smallest among those edited make the sample.

    Args:
        loaded: the model under edit.
        dataset: the run's records, edited in their order.
        every: steps between evaluations; the first and the last step are always evaluated.
        seen: size of the scope ``seen``; 0 leaves it out.
        first: size of the scope ``first``, at most a batch; 0 leaves it out.
        milestones: numbers of edits at which ``all`` is evaluated too, 0 for the unedited model.
        tokens_per_batch: padded tokens in a forward pass.
        seed: decides the sample.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        dataset: EditDataset,
        *,
        every: int = 1,
        seen: int = 200,
        first: int = 100,
        milestones: Iterable[int] = (),
        tokens_per_batch: int = 4096,
        seed: int = 0,
    ) -> None:
        self.loaded = loaded
        self.dataset = dataset
        self.every = every
        self.seen = seen
        self.first = first
        self.milestones = frozenset(milestones)
        self.tokens_per_batch = tokens_per_batch
        draw = random.Random(f"seen {seed}")
        self._priorities = [draw.random() for _ in dataset.records]

    def is_due(self, step: int, edits_done: int, batch_size: int, total: int) -> bool:
        """Whether the model is evaluated after ``step``."""
        return (
            step % self.every == 0
            or edits_done >= total
            or self._is_milestone(step, edits_done, batch_size)
        )

    def scopes(
        self, step: int, edits_done: int, batch_size: int, total: int
    ) -> dict[str, list[int]]:
        """Indices of the records in each scope that has any.

        Args:
            step: batches edited so far; 0 is the unedited model.
            edits_done: records edited so far.
            batch_size: records in a batch; the last one may be smaller.
            total: records of the run.
        """
        done = edits_done if step else min(batch_size, total)
        previous = (step - 1) * batch_size if step else 0
        scopes = {
            "batch": list(range(previous, done)),
            "seen": sorted(heapq.nsmallest(self.seen, range(done), self._priorities.__getitem__)),
            "first": list(range(min(self.first, batch_size, done))),
        }
        if self._is_milestone(step, edits_done, batch_size):
            scopes["all"] = list(range(done if step else total))
        return {scope: indices for scope, indices in scopes.items() if indices}

    def evaluate(self, step: int, edits_done: int, batch_size: int, total: int) -> Evaluation:
        """Score every scope of ``step``; a record in several scopes is scored once.

        Arguments as for :meth:`scopes`.
        """
        scopes = self.scopes(step, edits_done, batch_size, total)
        wanted = sorted({index for indices in scopes.values() for index in indices})
        records = [self.dataset.records[index] for index in wanted]
        scored = score_records(
            self.loaded, records, self.dataset.accuracy, tokens_per_batch=self.tokens_per_batch
        )
        results = dict(zip(wanted, scored, strict=True))
        steps_rows = []
        cases_rows: list[dict[str, Any]] = []
        for scope, indices in scopes.items():
            head: dict[str, Any] = {"step": step, "edits": edits_done, "scope": scope}
            summary = summarize([results[index] for index in indices], self.dataset.headline)
            steps_rows.append({**head, "records": len(indices), **summary})
            for index in indices:
                head["case_id"] = self.dataset.records[index].case.case_id
                head["edited_at"] = index // batch_size + 1
                cases_rows.extend({**head, **row} for row in _prompt_rows(results[index]))
        return Evaluation(steps_rows, cases_rows)

    def _is_milestone(self, step: int, edits_done: int, batch_size: int) -> bool:
        if step == 0:
            return 0 in self.milestones
        before = (step - 1) * batch_size
        return any(before < milestone <= edits_done for milestone in self.milestones)


def score_records(
    loaded: LoadedModel,
    records: Sequence[Record],
    rule: Accuracy,
    *,
    tokens_per_batch: int = 4096,
) -> list[list[PromptResult]]:
    """Every prompt of every record: likelihoods of both targets, success and accuracy.

    Args:
        loaded: the model.
        records: what to score.
        rule: how the tokens of a target make its accuracy.
        tokens_per_batch: padded tokens in a forward pass.

    Returns:
        One list a record, in the order of its prompts.
    """
    pairs = [
        (prompt.prompt, target)
        for record in records
        for prompt in record.case.prompts
        for target in (prompt.target_new, prompt.target_true)
        if target is not None
    ]
    scores = dict(zip(pairs, score_targets(loaded, pairs, tokens_per_batch), strict=True))
    return [
        [_prompt_result(prompt, scores, rule) for prompt in record.case.prompts]
        for record in records
    ]


def summarize(results: Sequence[Sequence[PromptResult]], headline: Headline) -> dict[str, float]:
    """The metrics of a set of records, in percent.

    ``efficacy``, ``generalization``, ``specificity`` and their harmonic mean ``score`` are the
    headline; ``*_success`` and ``*_accuracy`` are both kinds of each.
    """
    both: dict[str, float] = {}
    for measure in HEADLINES:
        parts = []
        for kind, metric in metrics.METRIC_OF_KIND.items():
            value = 100.0 * metrics.mean_over_records(
                [getattr(result, measure) for result in record if result.prompt.kind == kind]
                for record in results
            )
            both[f"{metric}_{measure}"] = value
            parts.append(value)
        both[f"score_{measure}"] = metrics.harmonic_mean(parts)
    return {**{name: both[f"{name}_{headline}"] for name in metrics.METRICS}, **both}


def _prompt_result(
    prompt: EvalPrompt, scores: Mapping[tuple[str, str], TargetScore], rule: Accuracy
) -> PromptResult:
    new, true = (
        None if target is None else scores[prompt.prompt, target]
        for target in (prompt.target_new, prompt.target_true)
    )
    nll_new = None if new is None else new.nll
    nll_true = None if true is None else true.nll
    wanted = true if prompt.kind == "neighbourhood" else new
    return PromptResult(
        prompt,
        nll_new,
        nll_true,
        metrics.success(prompt.kind, nll_new, nll_true),
        metrics.accuracy(None if wanted is None else wanted.matches, rule),
    )


def _prompt_rows(results: Sequence[PromptResult]) -> list[dict[str, Any]]:
    counts: dict[str, int] = {}
    rows = []
    for result in results:
        kind = result.prompt.kind
        rows.append(
            {
                "kind": kind,
                "prompt_index": counts.setdefault(kind, 0),
                "nll_new": result.nll_new,
                "nll_true": result.nll_true,
                "success": None if math.isnan(result.success) else result.success,
                "accuracy": None if math.isnan(result.accuracy) else result.accuracy,
            }
        )
        counts[kind] += 1
    return rows
