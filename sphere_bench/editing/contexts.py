"""Context prefixes: texts put before a prompt when its target value and keys are computed."""

from collections.abc import Sequence

import torch

from sphere_bench.editing.prompts import BARE
from sphere_bench.errors import SphereBenchError
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.sampling import sample_continuations
from sphere_bench.models.tokens import encode

OPENINGS = ("The", "Therefore", "Because", "I", "You")
# Between the seeds of two lengths: with the same one, short prefixes would begin the long ones.
_STRIDE = 1_000_003


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


def generated_contexts(
    loaded: LoadedModel, seed: int, lengths: Sequence[Sequence[int]]
) -> list[str]:
    """The bare prompt and sampled prefixes, as in MEMIT: "The ... . {}".

    Args:
        loaded: the unedited model.
        seed: of the sampling; the same seed, model and device give the same prefixes.
        lengths: pairs of how many tokens a prefix has, its opening word and a BOS among them, and
            how many prefixes there are of this length, which share the opening words evenly.
    """
    contexts = [BARE]
    for position, (tokens, count) in enumerate(lengths):
        for index, opening in enumerate(OPENINGS[:count]):
            copies = len(range(index, count, len(OPENINGS)))
            starts = torch.tensor([encode(loaded.tokenizer, opening).ids] * copies)
            texts = sample_continuations(
                loaded,
                starts,
                max(tokens - starts.shape[1], 0),
                seed=seed + _STRIDE * position,
                top_k=5,
            )
            for text in texts:
                # A brace in the sample would be mistaken for the place of the prompt.
                text = " ".join(text.replace("{", " ").replace("}", " ").split())
                contexts.append(f"{text}. {BARE}")
    return contexts
