"""What every dataset becomes: an edit to make and the prompts to judge it on."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal, get_args

Kind = Literal["rewrite", "paraphrase", "neighbourhood"]
Headline = Literal["success", "accuracy"]
Accuracy = Literal["all_tokens", "mean_tokens"]

HEADLINES: tuple[Headline, ...] = get_args(Headline)


@dataclass(frozen=True, slots=True)
class EditRequest:
    """One fact to write into the model.

    Attributes:
        case_id: the record's own name, unique in a run.
        prompt: the text that the new target shall follow; ``subject`` occurs in it exactly once.
        subject: whose fact it is.
        target_new: what the model shall say.
        target_true: what it said before, where the dataset knows.
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
        kind: ``rewrite`` (the edit's own prompt), ``paraphrase`` or ``neighbourhood`` (a prompt
            that the edit must leave alone).
        prompt: the text before the target.
        target_new: the edit's target; ``None`` where it has no meaning for this prompt.
        target_true: the answer before the edit, which a neighbourhood prompt keeps.
    """

    kind: Kind
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
        headline: whether ``success`` or ``accuracy`` is reported as the metric.
        accuracy: ``all_tokens`` (every target token is the argmax) or ``mean_tokens`` (the share
            of them that is).
        fingerprint: SHA-256 over the content of ``records`` in their order.
    """

    name: str
    records: tuple[Record, ...]
    headline: Headline
    accuracy: Accuracy
    fingerprint: str


def fingerprint_records(records: Sequence[Record]) -> str:
    """SHA-256 over everything that ``records`` say, order included."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(astuple(record)).encode())
        digest.update(b"\n")
    return digest.hexdigest()
