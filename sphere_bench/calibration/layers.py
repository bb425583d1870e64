"""Which layers to edit, from the depth of a model alone."""

# The last edited layer and the number of layers of GPT-2 XL, GPT-J, Llama 3 8B, Qwen2.5 7B and
# phi-1.5, as published for MEMIT and AlphaEdit.
PUBLISHED = ((17, 48), (8, 28), (8, 32), (8, 28), (8, 24))
# Published are five layers, on GPT-J six. Shallow models edit a quarter of theirs.
_FEWEST, _MOST = 3, 5


def candidate_layers(depth: int) -> list[tuple[int, ...]]:
    """Edited layers at the relative depth of the published models: the middle one, then the others.

    Args:
        depth: how many decoder layers the model has.
    """
    lasts = sorted(int(depth * last / layers) for last, layers in PUBLISHED)
    middle, lowest, highest = lasts[len(lasts) // 2], lasts[0], lasts[-1]
    count = min(max(depth // 4, _FEWEST), _MOST)
    found = [tuple(range(max(last - count + 1, 0), last + 1)) for last in (middle, lowest, highest)]
    return list(dict.fromkeys(found))
