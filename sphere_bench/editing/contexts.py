"""Context prefixes that a prompt is read behind while its target value and keys are found."""

import torch

from sphere_bench.editing.prompts import BARE
from sphere_bench.errors import SphereBenchError
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.sampling import sample_continuations
from sphere_bench.models.tokens import encode

OPENINGS = ("The", "Therefore", "Because", "I", "You")


def fixed_contexts(contexts: list[str]) -> list[str]:
    """The bare prompt and then the given templates, each with exactly one ``{}``.

    Raises:
        SphereBenchError: a template without its ``{}`` or with several.
    """
    for context in contexts:
        if context.count(BARE) != 1:
            raise SphereBenchError(
                f"values.contexts: {context!r} must hold exactly one {{}} for the prompt"
            )
    return [BARE, *(context for context in contexts if context != BARE)]


def generated_contexts(loaded: LoadedModel, seed: int, tokens: int = 10) -> list[str]:
    """The bare prompt and five sampled beginnings, as MEMIT has them: "The ... . {}".

    Args:
        loaded: the unedited model.
        seed: of the sampling; the same seed, model and device give the same prefixes.
        tokens: generated behind each opening word.
    """
    contexts = [BARE]
    for opening in OPENINGS:
        start = torch.tensor([encode(loaded.tokenizer, opening).ids])
        (text,) = sample_continuations(loaded, start, tokens, seed=seed, top_k=5)
        # A brace of the sample's own would be taken for the prompt's place.
        text = " ".join(text.replace("{", " ").replace("}", " ").split())
        contexts.append(f"{text}. {BARE}")
    return contexts
