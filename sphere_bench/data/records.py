"""What every dataset becomes: edits, and the prompts on which they are scored."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, field
from itertools import islice
from typing import Literal, get_args

Headline = Literal["success", "accuracy"]
Accuracy = Literal["all_tokens", "mean_tokens"]

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


REWRITE = PromptKind("rewrite", "efficacy", "new")
PARAPHRASE = PromptKind("paraphrase", "generalization", "new")
NEIGHBOURHOOD = PromptKind("neighbourhood", "specificity", "true")
KINDS = (REWRITE, PARAPHRASE, NEIGHBOURHOOD)


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
    """All prompts of one record."""

    case_id: str
    prompts: tuple[EvalPrompt, ...]


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
        later: returns the dataset's valid records after ``records``, in the same order. A record
            is read when it is needed.
    """

    name: str
    records: tuple[Record, ...]
    headline: Headline
    accuracy: Accuracy
    kinds: tuple[PromptKind, ...] = KINDS
    later: Callable[[], Iterable[Record]] = field(default=tuple, compare=False, repr=False)

    def fingerprint(self, count: int | None = None) -> str:
        """SHA-256 over the content of the first ``count`` records, all by default, in order."""
        return fingerprint_records(self.records[:count])

    def pool(self, count: int) -> list[EditRequest]:
        """The first ``count`` requests of the dataset, counted from the run's first record.

        They are the same however many records the run edits. There are fewer if the dataset ends.

        Raises:
            SphereBenchError: a later record is invalid and ``dataset.on_invalid`` is ``error``.
        """
        drawn = list(self.records[:count])
        drawn.extend(islice(self.later(), count - len(drawn)))
        return [record.request for record in drawn]


def fingerprint_records(records: Sequence[Record]) -> str:
    """SHA-256 over the content and the order of ``records``."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(astuple(record)).encode())
        digest.update(b"\n")
    return digest.hexdigest()
