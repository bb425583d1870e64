"""QAEdit: questions of Natural Questions, TriviaQA and SimpleQA, with whole phrases as answers.

Yang et al. 2025, https://arxiv.org/abs/2502.11177.
"""

from sphere_bench.data.fields import Fields, Format, check_subject
from sphere_bench.data.records import EditRequest, EvalCase, EvalPrompt, Record

LOCALITY_FIELDS = ("loc", "loc_ans")


def parse_qaedit(fields: Fields, index: int) -> Record:
    """One record. Its case id is ``<source>-<id>``: each source has a numbering of its own."""
    case_id = fields.case_id(index, "id")
    if "source" in fields:
        case_id = f"{fields.text('source')}-{case_id}"
    subject = fields.text("subject")
    prompt = fields.text("prompt")
    check_subject(fields, "prompt", prompt, subject)
    target = fields.text("target")
    fields.check_known()
    prompts = [EvalPrompt("rewrite", prompt, target, None)]
    rephrase = fields.optional_text("rephrase")
    if rephrase is not None:
        prompts.append(EvalPrompt("paraphrase", rephrase, target, None))
    for unrelated in fields.sections("locality", LOCALITY_FIELDS):
        unrelated.check_known()
        question, answer = unrelated.text("loc"), unrelated.text("loc_ans")
        prompts.append(EvalPrompt("neighbourhood", question, None, answer))
    return Record(
        EditRequest(case_id, prompt, subject, target, None), EvalCase(case_id, tuple(prompts))
    )


QAEDIT = Format(
    name="qaedit",
    known=("id", "source", "prompt", "target", "subject", "rephrase", "locality"),
    parse=parse_qaedit,
    headline="accuracy",
    accuracy="mean_tokens",
    questions=True,
)
