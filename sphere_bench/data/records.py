"""What every dataset becomes: edits, and the prompts on which they are scored."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, field
from itertools import islice
from typing import Literal, get_args

Headline = Literal["success", "accuracy"]
Accuracy = Literal["all_tokens", "mean_tokens"]

# A quotation may end with the question.
_BEHIND_A_QUESTION_MARK = " \n\t\"'”’»"

HEADLINES: tuple[Headline, ...] = get_args(Headline)


@dataclass(frozen=True, slots=True)
class PromptKind:
    """A kind of prompt, and what is measured on it.

    Attributes:
        name: as in the column ``kind`` of the table ``cases``.
        metric: the name of its score in the table ``steps``.
        wants: which target should win, and which one the accuracy is of: the edit's ``new`` one
            or the ``true`` answer before the edit.
        scored: whether the metric is part of ``score``, the harmonic mean.
    """

    name: str
    metric: str
    wants: Literal["new", "true"]
    scored: bool = True

    def target(self, prompt: "EvalPrompt") -> str | None:
        """The target that should win on ``prompt``; ``None`` if it has none."""
        return prompt.target_true if self.wants == "true" else prompt.target_new


REWRITE = PromptKind("rewrite", "efficacy", "new")
PARAPHRASE = PromptKind("paraphrase", "generalization", "new")
NEIGHBOURHOOD = PromptKind("neighbourhood", "specificity", "true")
KINDS = (REWRITE, PARAPHRASE, NEIGHBOURHOOD)
#: What follows from an edit. Not in every dataset, so it is no part of the score.
PORTABILITY = PromptKind("portability", "portability", "new", scored=False)


@dataclass(frozen=True, slots=True)
class EditRequest:
    """One fact to write into the model.

    Attributes:
        case_id: the record's name, unique in a run.
        prompt: the text before the target; ``subject`` occurs in it exactly once.
        subject: the person or thing that the fact is about.
        target_new: what the edited model should say.
        target_true: the answer before the edit, if the dataset has one.
    """

    case_id: str
    prompt: str
    subject: str
    target_new: str
    target_true: str | None


@dataclass(frozen=True, slots=True)
class EvalPrompt:
    """One prompt to score, with the targets that are compared on it.

    Attributes:
        kind: the name of a :class:`PromptKind`: ``rewrite`` (the edit's own prompt),
            ``paraphrase``, ``neighbourhood`` (a prompt that the edit must leave alone), or one
            that the dataset declares.
        prompt: the text before the target.
        target_new: the edit's target; ``None`` if it makes no sense behind this prompt.
        target_true: the answer before the edit, which stays the right one for a neighbour.
    """

    kind: str
    prompt: str
    target_new: str | None
    target_true: str | None


@dataclass(frozen=True, slots=True)
class EvalCase:
    """All prompts of one record. What is scored makes two of them equal, and their fingerprint.

    Attributes:
        case_id: the request's.
        prompts: to score.
        generation_prompts: beginnings of texts about the subject, which the model goes on with.
        attribute: the relation and the new target by their ids, which find texts about things of
            which the new fact is true; ``None`` where the dataset has no such ids.
    """

    case_id: str
    prompts: tuple[EvalPrompt, ...]
    generation_prompts: tuple[str, ...] = field(default=(), compare=False)
    attribute: tuple[str, str] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a dataset: the edit and its evaluation."""

    request: EditRequest
    case: EvalCase


@dataclass(frozen=True)
class EditDataset:
    """The records of a run, in the order in which they are edited.

    Attributes:
        name: the dataset's name, for reports.
        records: what is edited, first to last.
        headline: ``success`` or ``accuracy``, the measure that is reported under a metric's name.
        accuracy: ``all_tokens`` (every target token is the argmax) or ``mean_tokens`` (the share
            of the target's tokens that are).
        kinds: the kinds of its prompts, in the order in which their metrics are reported.
        questions: whether every prompt is a question, even without a question mark. Otherwise a
            prompt without one is the beginning of a sentence.
        drawn: returns all valid records of the dataset in an order that the run's seed draws,
            apart from the order of ``records``. A record is read when it is needed. ``None``: the
            dataset has no others than ``records``.
        behind: returns the valid records behind ``records`` in the order of the edits, the last
            one first. ``None``: there are none.
    """

    name: str
    records: tuple[Record, ...]
    headline: Headline
    accuracy: Accuracy
    kinds: tuple[PromptKind, ...] = KINDS
    questions: bool = False
    drawn: Callable[[], Iterable[Record]] | None = field(default=None, compare=False, repr=False)
    behind: Callable[[], Iterable[Record]] | None = field(default=None, compare=False, repr=False)

    def fingerprint(self, count: int | None = None) -> str:
        """SHA-256 over the content of the first ``count`` records, all by default, in order."""
        return fingerprint_records(self.records[:count])

    def is_question(self, prompt: str) -> bool:
        """Whether the answer stands alone behind ``prompt``, and does not go on its sentence."""
        return self.questions or prompt.rstrip(_BEHIND_A_QUESTION_MARK).endswith("?")

    def pool(self, count: int) -> list[EditRequest]:
        """``count`` requests of the whole dataset, drawn with the run's seed.

        They are the same whichever records the run edits. There are fewer if the dataset has fewer.

        Raises:
            SphereBenchError: a record drawn is invalid and ``dataset.on_invalid`` is ``error``.
        """
        drawn = self.records if self.drawn is None else self.drawn()
        return [record.request for record in islice(drawn, count)]

    def spare(self, count: int) -> list[EditRequest]:
        """The last ``count`` requests in the order of the edits, none of which is edited.

        They are the same however long the run is. There are fewer if fewer are behind ``records``.

        Raises:
            SphereBenchError: one of them is invalid and ``dataset.on_invalid`` is ``error``.
        """
        behind = () if self.behind is None else self.behind()
        return [record.request for record in islice(behind, count)][::-1]


def fingerprint_records(records: Sequence[Record]) -> str:
    """SHA-256 over the content and the order of ``records``: what is edited and what is scored."""
    digest = hashlib.sha256()
    for record in records:
        request, (case_id, prompts, *_) = astuple(record)
        digest.update(json.dumps((request, (case_id, prompts))).encode())
        digest.update(b"\n")
    return digest.hexdigest()
