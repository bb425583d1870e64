"""What the model says by itself: answers to the prompts, compared with the targets."""

from collections.abc import Iterable, Mapping

from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation import metrics
from sphere_bench.evaluation.answers import Judge, Prompter, Said, Style, exact_match, stripped
from sphere_bench.evaluation.columns import Column, Declared, Table
from sphere_bench.evaluation.probe import Findings, Moment, ProbeSetup
from sphere_bench.evaluation.prompts import PROMPT, asked_prompts, by_record
from sphere_bench.evaluation.scopes import Sample, check_sizes
from sphere_bench.models.decoding import check_room, continuations

KEY = "probes.generation"
MEASURE = "generation"
#: At most so many tokens are said.
TOKENS = 50

GENERATIONS = Table(
    "generations",
    "one row for each step, scope, record and prompt with a right answer",
    (
        *PROMPT,
        Column("text", "text", "what the model said, greedily"),
        Column("answer", "text", "the text without the full stop or line break at its end"),
        Column(
            "match", "real", "1 if the answer is the right one, else 0; or a judge's number",
            measure=MEASURE,
        ),
    ),
)  # fmt: skip


class Generation:
    """Lets the model answer the prompts of the records by itself.

    Args:
        setup: the run's model and records.
        style: how questions are asked: ``plain`` (the question alone), ``qa`` (with an instruction)
            or ``chat`` (the tokenizer's own template). A prompt that is the beginning of a sentence
            is always given as it is.
        system: a system turn before the question, with ``chat``.
        records: at most so many records of each scope, the same ones at every step as far as they
            can be; null is all.
        prompts: at most so many prompts of each kind in a record, the first ones; null is all.
        judge: an object that decides which answers are right, with a ``_target_``; null compares
            words.

    Raises:
        SphereBenchError: the tokenizer has no such template, or a prompt has no room in the model.
    """

    def __init__(
        self,
        setup: ProbeSetup,
        style: Style = "plain",
        system: str | None = None,
        records: int | None = None,
        prompts: int | None = None,
        judge: Judge | None = None,
    ) -> None:
        check_sizes(KEY, records=records, prompts=prompts)
        self.setup = setup
        self.prompts = prompts
        self.judge: Judge = exact_match if judge is None else judge
        self.prompter = Prompter(setup.loaded, style, system, KEY)
        self._sample = Sample(len(setup.dataset.records), records, setup.seed)
        self._kinds = {kind.name: kind for kind in setup.dataset.kinds}
        cases = (record.case for record in setup.dataset.records)
        check_room(
            setup.loaded,
            (each.prompt for case in cases for each in case.prompts),
            KEY,
            lambda prompt: self.prompter.text(prompt, self._asks(prompt)),
        )

    @property
    def declares(self) -> Declared:
        names = [*(kind.metric for kind in self.setup.dataset.kinds), metrics.SCORE]
        columns = [
            Column(
                f"{name}_{MEASURE}",
                "real",
                _meaning(name),
                "%",
                metric=name,
                measure=MEASURE,
                shown=name == names[0],
            )
            for name in names
        ]
        return Declared(scope=tuple(columns), tables=(GENERATIONS,))

    def measure(self, moment: Moment) -> Findings:
        scopes = self._sample.of_each(moment.scopes)
        wanted = [
            (asked, target)
            for asked in asked_prompts(self.setup.dataset, moment, scopes, self.prompts)
            if (target := self._kinds[asked.prompt.kind].target(asked.prompt)) is not None
        ]
        judged = self._judged((asked.prompt.prompt, target) for asked, target in wanted)
        answered = [(asked, *judged[asked.prompt.prompt, target]) for asked, target in wanted]
        values = by_record((asked, match) for asked, _, match in answered)
        return Findings(
            scopes={
                scope: {
                    f"{name}_{MEASURE}": value
                    for name, value in metrics.scores_of(
                        values.get(scope, []), self.setup.dataset.kinds
                    ).items()
                }
                for scope in scopes
            },
            tables={
                GENERATIONS.name: [
                    {**asked.row, "text": said.text, "answer": said.answer, "match": match}
                    for asked, said, match in answered
                ]
            },
        )

    def answers(self, prompts: Iterable[str]) -> dict[str, str]:
        """What the model says behind each prompt, each prompt once."""
        distinct = list(dict.fromkeys(prompts))
        rows = [self.prompter.ids(prompt, self._asks(prompt)) for prompt in distinct]
        said = continuations(
            self.setup.loaded,
            rows,
            [len(row) + TOKENS for row in rows],
            ends=self.prompter.ends,
            tokens_per_batch=self.setup.tokens_per_batch,
        )
        return dict(zip(distinct, map(self.prompter.decoded, said), strict=True))

    def _judged(
        self, pairs: Iterable[tuple[str, str]]
    ) -> Mapping[tuple[str, str], tuple[Said, float]]:
        """Each distinct prompt and target to what was said and how it was judged."""
        distinct = list(dict.fromkeys(pairs))
        texts = self.answers(prompt for prompt, _ in distinct)
        said = [
            Said(prompt, target, self._asks(prompt), texts[prompt], stripped(texts[prompt]))
            for prompt, target in distinct
        ]
        matches = [float(match) for match in self.judge(said)]
        if len(matches) != len(said) or not all(0 <= match <= 1 for match in matches):
            raise SphereBenchError(
                f"{KEY}.judge must give a number from 0 to 1 for each of {len(said)} answers"
            )
        return dict(zip(distinct, zip(said, matches, strict=True), strict=True))

    def _asks(self, prompt: str) -> bool:
        return self.setup.dataset.is_question(prompt)


def _meaning(metric: str) -> str:
    if metric == metrics.SCORE:
        return f"harmonic mean of the metrics' {MEASURE}"
    return "share of prompts that the model itself answers as it should"
