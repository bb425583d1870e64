"""Texts about the things that have an attribute, such as everything whose mother tongue is French.

Meng et al. 2022, https://arxiv.org/abs/2202.05262: ``attribute_snippets.json`` beside CounterFact.
"""

from pathlib import Path

from sphere_bench.assets import snippets_path
from sphere_bench.data.fields import Fields
from sphere_bench.data.sources import BUNDLED, read_file

FIELDS = ("relation_id", "target_id", "samples")
SAMPLE_FIELDS = ("name", "text")


def read_snippets(source: str, key: str) -> dict[tuple[str, str], list[str]]:
    """Relation and object, by their ids, to the texts.

    Args:
        source: a JSON file as ROME's authors publish it, or ``bundled`` (the tiny GPT-2's world).
        key: of the configuration that names it, for errors.

    Raises:
        SphereBenchError: there is no such file, or it is of another format.
    """
    place = f"{key}={source}"
    file = snippets_path() if source == BUNDLED else Path(source).expanduser()
    snippets: dict[tuple[str, str], list[str]] = {}
    for index, raw in enumerate(read_file(file, place)):
        fields = Fields(raw, f"{place}: record {index}", FIELDS)
        attribute = fields.text("relation_id"), fields.text("target_id")
        texts = [sample.text("text") for sample in fields.sections("samples", SAMPLE_FIELDS)]
        snippets.setdefault(attribute, []).extend(texts)
    return snippets
