"""CounterFact and MultiCounterFact in their original format.

CounterFact: Meng et al. 2022, https://arxiv.org/abs/2202.05262; MultiCounterFact: Meng et al. 2023,
https://arxiv.org/abs/2210.07229.
"""

from sphere_bench.data.checks import quote
from sphere_bench.data.fields import Fields, Format, check_subject
from sphere_bench.data.records import EditRequest, EvalCase, EvalPrompt, Record

REWRITE_FIELDS = ("prompt", "subject", "target_new", "target_true", "relation_id")
TARGET_FIELDS = ("str", "id")


def parse_counterfact(fields: Fields, index: int) -> Record:
    """One record. The right answer to its neighbourhood prompts is ``target_true``."""
    case_id = fields.case_id(index)
    rewrite = fields.section("requested_rewrite", REWRITE_FIELDS)
    subject = rewrite.text("subject")
    template = rewrite.text("prompt")
    if template.count("{}") != 1:
        raise rewrite.error("prompt", f"must hold '{{}}' exactly once: {quote(template)}")
    prompt = template.replace("{}", subject)
    check_subject(rewrite, "prompt", prompt, subject)
    target_new, new_id = _target(rewrite, "target_new")
    target_true = _target(rewrite, "target_true")[0] if "target_true" in rewrite else None
    relation = rewrite.optional_text("relation_id")
    rewrite.check_known()
    fields.check_known()
    prompts = (
        EvalPrompt("rewrite", prompt, target_new, target_true),
        *(
            EvalPrompt("paraphrase", text, target_new, target_true)
            for text in fields.texts("paraphrase_prompts")
        ),
        *(
            EvalPrompt("neighbourhood", text, target_new, target_true)
            for text in fields.texts("neighborhood_prompts")
        ),
    )
    return Record(
        EditRequest(case_id, prompt, subject, target_new, target_true),
        EvalCase(
            case_id,
            prompts,
            generation_prompts=fields.texts("generation_prompts"),
            attribute=(relation, new_id) if relation and new_id else None,
        ),
    )


def _target(rewrite: Fields, name: str) -> tuple[str, str | None]:
    """A target's text and its id."""
    target = rewrite.section(name, TARGET_FIELDS)
    found = target.text("str"), target.optional_text("id")
    target.check_known()
    return found


COUNTERFACT = Format(
    name="counterfact",
    known=(
        "case_id",
        "requested_rewrite",
        "paraphrase_prompts",
        "neighborhood_prompts",
        "attribute_prompts",
        "generation_prompts",
        "pararel_idx",
    ),
    parse=parse_counterfact,
    headline="success",
    accuracy="all_tokens",
)
