"""Teacher-forced scores: success and accuracy of every prompt of the records in a step's scopes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sphere_bench.data.records import (
    HEADLINES,
    KINDS,
    Accuracy,
    EvalPrompt,
    Headline,
    PromptKind,
    Record,
)
from sphere_bench.evaluation import metrics
from sphere_bench.evaluation.columns import HEADLINE, Column, Declared, Table
from sphere_bench.evaluation.metrics import SCORE
from sphere_bench.evaluation.probe import Findings, Moment, ProbeSetup
from sphere_bench.evaluation.prompts import PROMPT, asked_prompts
from sphere_bench.evaluation.scoring import TargetScore, score_targets
from sphere_bench.models.batching import Budget
from sphere_bench.models.loading import LoadedModel

_MEANING = {
    "success": "share of prompts on which the wanted answer is likelier than the other one",
    "accuracy": "share of prompts or tokens (by dataset) that the model would say, teacher forced",
}

CASES = Table(
    "cases",
    "one row for each step, scope, record and prompt",
    (
        *PROMPT,
        Column("nll_new", "real", "mean NLL of the new target's tokens, teacher forced", "nats"),
        Column("nll_true", "real", "the same of the true target's tokens", "nats"),
        Column("success", "real", "1 if the target that should win is the likelier one, else 0"),
        Column("accuracy", "real", "1 or 0, or the share of tokens, by the dataset's rule"),
    ),
)


@dataclass(frozen=True, slots=True)
class PromptResult:
    """One prompt's numbers; without a target ``None`` for its NLL, NaN for the metrics."""

    prompt: EvalPrompt
    nll_new: float | None
    nll_true: float | None
    success: float
    accuracy: float


class TeacherForced:
    """Scores the records of each scope, each record once.

    Args:
        setup: the run's model and records.
    """

    stage = "evaluate"

    def __init__(self, setup: ProbeSetup) -> None:
        self.setup = setup

    @property
    def declares(self) -> Declared:
        dataset = self.setup.dataset
        names = [*(kind.metric for kind in dataset.kinds), SCORE]
        headline = [
            Column(
                name,
                "real",
                f"the headline: {dataset.headline}"
                + (", harmonic mean of the metrics" if name == SCORE else ""),
                "%",
                metric=name,
                measure=HEADLINE,
                shown=True,
            )
            for name in names
        ]
        measured = [
            Column(
                f"{name}_{measure}",
                "real",
                _meaning(name, measure),
                "%",
                metric=name,
                measure=measure,
            )
            for name in names
            for measure in HEADLINES
        ]
        return Declared(scope=(*headline, *measured), tables=(CASES,))

    def measure(self, moment: Moment) -> Findings:
        dataset = self.setup.dataset
        wanted = sorted({index for indices in moment.scopes.values() for index in indices})
        scored = score_records(
            self.setup.loaded,
            [dataset.records[index] for index in wanted],
            dataset.accuracy,
            dataset.kinds,
            tokens_per_batch=self.setup.tokens_per_batch,
        )
        results = dict(zip(wanted, scored, strict=True))
        scopes = {
            scope: summarize([results[index] for index in indices], dataset.headline, dataset.kinds)
            for scope, indices in moment.scopes.items()
        }
        cases = [
            {**asked.row, **_numbers(results[asked.record][asked.place])}
            for asked in asked_prompts(dataset, moment, moment.scopes)
        ]
        return Findings(scopes=scopes, tables={CASES.name: cases})


def score_records(
    loaded: LoadedModel,
    records: Sequence[Record],
    rule: Accuracy,
    kinds: Sequence[PromptKind] = KINDS,
    *,
    tokens_per_batch: int | Budget = 4096,
) -> list[list[PromptResult]]:
    """Every prompt of every record: likelihoods of both targets, success and accuracy.

    Args:
        loaded: the model.
        records: what to score.
        rule: how the tokens of a target make its accuracy.
        kinds: the kinds of prompts that the records have.
        tokens_per_batch: padded tokens in a forward pass.

    Returns:
        A list for each record, in the order of its prompts.
    """
    pairs = [
        (prompt.prompt, target)
        for record in records
        for prompt in record.case.prompts
        for target in (prompt.target_new, prompt.target_true)
        if target is not None
    ]
    scores = dict(zip(pairs, score_targets(loaded, pairs, tokens_per_batch), strict=True))
    named = {kind.name: kind for kind in kinds}
    return [
        [_prompt_result(prompt, named[prompt.kind], scores, rule) for prompt in record.case.prompts]
        for record in records
    ]


def summarize(
    results: Sequence[Sequence[PromptResult]],
    headline: Headline,
    kinds: Sequence[PromptKind] = KINDS,
) -> dict[str, float]:
    """The metrics of a set of records, in percent.

    Each kind's metric by both measures (``efficacy_success``, ...), their harmonic means
    (``score_success``, ...), and the headline measure of each under the metric's own name.
    """
    both: dict[str, dict[str, float]] = {}
    for measure in HEADLINES:
        values = [[(each.prompt.kind, getattr(each, measure)) for each in of] for of in results]
        both[measure] = metrics.scores_of(values, kinds)
    named = {
        f"{name}_{measure}": value
        for measure, scores in both.items()
        for name, value in scores.items()
    }
    return {**both[headline], **named}


def _meaning(metric: str, measure: str) -> str:
    return f"harmonic mean of the metrics' {measure}" if metric == SCORE else _MEANING[measure]


def _prompt_result(
    prompt: EvalPrompt,
    kind: PromptKind,
    scores: Mapping[tuple[str, str], TargetScore],
    rule: Accuracy,
) -> PromptResult:
    new, true = (
        None if target is None else scores[prompt.prompt, target]
        for target in (prompt.target_new, prompt.target_true)
    )
    nll_new = None if new is None else new.nll
    nll_true = None if true is None else true.nll
    wanted = true if kind.wants == "true" else new
    return PromptResult(
        prompt,
        nll_new,
        nll_true,
        metrics.success(kind, nll_new, nll_true),
        metrics.accuracy(None if wanted is None else wanted.matches, rule),
    )


def _numbers(result: PromptResult) -> dict[str, float | None]:
    return {
        "nll_new": result.nll_new,
        "nll_true": result.nll_true,
        "success": None if math.isnan(result.success) else result.success,
        "accuracy": None if math.isnan(result.accuracy) else result.accuracy,
    }
