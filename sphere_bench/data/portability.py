"""Prompts that an edit should carry over to: questions whose answers follow from the new fact."""

from collections.abc import Iterator

from sphere_bench.data.fields import Fields
from sphere_bench.data.records import PORTABILITY, EvalPrompt

FIELD = "portability"
ONE_QUESTION = ("Recalled Relation", "New Question", "New Answer")
ASKED = ("prompt", "ground_truth")
# KnowEdit's, https://arxiv.org/abs/2401.01286.
GROUPS = ("Reasoning", "Logical_Generalization", "Subject_Aliasing")


def portability_prompts(fields: Fields) -> Iterator[EvalPrompt]:
    """The prompts in a record's field ``portability``; none without it.

    The field holds one question as EasyEdit's CounterFact and ZsRE files have it (``New Question``,
    ``New Answer``), or KnowEdit's groups, each a list of prompts with their right answers, of which
    the first one counts.
    """
    if FIELD not in fields:
        return
    section = fields.section(FIELD, (*ONE_QUESTION, *GROUPS))
    section.check_known()
    if "New Question" in section or "New Answer" in section:
        yield _prompt(section.text("New Question"), section.text("New Answer"))
    for group in GROUPS:
        for asked in section.sections(group, ASKED):
            asked.check_known()
            yield _prompt(asked.text("prompt"), asked.first_text("ground_truth"))


def _prompt(prompt: str, answer: str) -> EvalPrompt:
    return EvalPrompt(PORTABILITY.name, prompt, answer, None)
