"""EasyEdit's flat format, which is also the easiest one for records of your own.

EasyEdit: Wang et al. 2023, https://arxiv.org/abs/2308.07269.
"""

from sphere_bench.data.fields import Fields, Format, check_subject
from sphere_bench.data.portability import portability_prompts
from sphere_bench.data.records import EditRequest, EvalCase, EvalPrompt, Record


def parse_easyedit(fields: Fields, index: int) -> Record:
    """One record. Only ``prompt``, ``subject`` and ``target_new`` are required.

    ``rephrase_prompt``, ``locality_prompt`` and ``locality_ground_truth`` are one text or a list.
    """
    case_id = fields.case_id(index)
    subject = fields.text("subject")
    prompt = fields.text("prompt")
    check_subject(fields, "prompt", prompt, subject)
    target_new = fields.text("target_new")
    target_true = fields.optional_text("ground_truth")
    fields.check_known()
    neighbours = fields.text_or_texts("locality_prompt")
    answers = fields.text_or_texts("locality_ground_truth")
    if len(neighbours) != len(answers):
        raise fields.error(
            "locality_ground_truth",
            f"has {len(answers)} answers for {len(neighbours)} texts in 'locality_prompt'",
        )
    prompts = (
        EvalPrompt("rewrite", prompt, target_new, target_true),
        *(
            EvalPrompt("paraphrase", text, target_new, target_true)
            for text in fields.text_or_texts("rephrase_prompt")
        ),
        *(
            EvalPrompt("neighbourhood", text, target_new, answer)
            for text, answer in zip(neighbours, answers, strict=True)
        ),
        *portability_prompts(fields),
    )
    return Record(
        EditRequest(case_id, prompt, subject, target_new, target_true), EvalCase(case_id, prompts)
    )


EASYEDIT = Format(
    name="easyedit",
    known=(
        "case_id",
        "prompt",
        "subject",
        "target_new",
        "ground_truth",
        "rephrase_prompt",
        "locality_prompt",
        "locality_ground_truth",
        "portability",
    ),
    parse=parse_easyedit,
    headline="success",
    accuracy="all_tokens",
)
