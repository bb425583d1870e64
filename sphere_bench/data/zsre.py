"""ZsRE as MEND prepared it: questions, rephrasings and unrelated Natural Questions.

MEND: Mitchell et al. 2022, https://arxiv.org/abs/2110.11309.
"""

from typing import Literal

from sphere_bench.data.fields import Fields, Format, check_subject
from sphere_bench.data.portability import portability_prompts
from sphere_bench.data.records import EditRequest, EvalCase, EvalPrompt, Record

Target = Literal["answers", "alt"]


def zsre_format(target: Target = "answers") -> Format:
    """The format, with the field that the edit's target is taken from.

    Args:
        target: ``answers`` takes the first right answer, as AlphaEdit and SPHERE do. ``alt`` takes
            the made-up answer; the first right answer is then the true one.
    """

    def parse(fields: Fields, index: int) -> Record:
        return parse_zsre(fields, index, target)

    return Format(
        name="zsre",
        known=(
            "case_id",
            "subject",
            "src",
            "rephrase",
            "answers",
            "alt",
            "pred",
            "loc",
            "loc_ans",
            "cond",
            "portability",
        ),
        parse=parse,
        headline="accuracy",
        accuracy="mean_tokens",
        questions=True,
    )


def parse_zsre(fields: Fields, index: int, target: Target) -> Record:
    """One record. ZsRE has no ids, so the index in the file is used.

    A field that ``target`` does not use may be empty.
    """
    case_id = fields.case_id(index)
    subject = fields.text("subject")
    prompt = fields.text("src")
    check_subject(fields, "src", prompt, subject)
    target_new, target_true = _targets(fields, target)
    fields.check_known()
    rephrase = fields.optional_text("rephrase")
    prompts = [EvalPrompt("rewrite", prompt, target_new, target_true)]
    if rephrase is not None:
        prompts.append(EvalPrompt("paraphrase", rephrase, target_new, target_true))
    if "loc" in fields or "loc_ans" in fields:
        # The files have no question mark here, and the published evaluation adds it.
        question = fields.text("loc").rstrip("?") + "?"
        prompts.append(EvalPrompt("neighbourhood", question, None, fields.text("loc_ans")))
    prompts.extend(portability_prompts(fields))
    return Record(
        EditRequest(case_id, prompt, subject, target_new, target_true),
        EvalCase(case_id, tuple(prompts)),
    )


def _targets(fields: Fields, target: Target) -> tuple[str, str | None]:
    fields.value("answers")
    answers = fields.texts("answers")
    if not answers:
        raise fields.error("answers", "is empty")
    if target == "answers":
        return answers[0], None
    return fields.text("alt"), answers[0]
