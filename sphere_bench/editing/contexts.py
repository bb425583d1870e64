"""Context prefixes: texts put before a prompt when its target value and keys are computed."""

import torch

from sphere_bench.editing.prompts import BARE
from sphere_bench.errors import SphereBenchError
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.sampling import sample_continuations
from sphere_bench.models.tokens import encode

OPENINGS = ("The", "Therefore", "Because", "I", "You")


def fixed_contexts(contexts: list[str]) -> list[str]:
    """The bare prompt, then the given templates.

    Raises:
        SphereBenchError: a template does not have exactly one ``{}``.
    """
    for context in contexts:
        if context.count(BARE) != 1:
            raise SphereBenchError(
                f"values.contexts: {context!r} must hold exactly one {{}} for the prompt"
            )
    return [BARE, *(context for context in contexts if context != BARE)]


def generated_contexts(loaded: LoadedModel, seed: int, tokens: int = 10) -> list[str]:
    """The bare prompt and five sampled prefixes, as in MEMIT: "The ... . {}".

    Args:
        loaded: the unedited model.
        seed: of the sampling; the same seed, model and device give the same prefixes.
        tokens: how many to generate after each opening word.
    """
    contexts = [BARE]
    for opening in OPENINGS:
        start = torch.tensor([encode(loaded.tokenizer, opening).ids])
        (text,) = sample_continuations(loaded, start, tokens, seed=seed, top_k=5)
        # A brace in the sample would be mistaken for the place of the prompt.
        text = " ".join(text.replace("{", " ").replace("}", " ").split())
        contexts.append(f"{text}. {BARE}")
    return contexts
