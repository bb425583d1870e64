from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sphere_bench.models import tokens
from sphere_bench.models.tokens import encode, encode_continuation, last_token_of
from tests.tiny_models import TOKENIZER


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TOKENIZER)


@pytest.mark.parametrize("target", ["jazz", " jazz", "jazz ", "Zaxhisia", "two words"])
@pytest.mark.parametrize("prompt", ["Parrirk Wour performs", "Parrirk Wour performs "])
def test_target_tokens_spell_the_target(
    tokenizer: PreTrainedTokenizerBase, prompt: str, target: str
) -> None:
    ids, _, length = encode_continuation(tokenizer, prompt, target)
    assert tokenizer.decode(ids[-length:]) == f" {target.strip()}"
    assert tokenizer.decode(ids[:-length]) == prompt.strip()


def test_last_token_of_the_subject(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "The mother of Parrirk Wour, they say"
    ids, offsets = encode(tokenizer, text)
    start = text.index("Parrirk Wour")
    last = last_token_of(offsets, start, start + len("Parrirk Wour"))
    assert tokenizer.decode(ids[: last + 1]) == "The mother of Parrirk Wour"


def test_a_text_is_tokenised_once_unless_there_are_too_many(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    plain = tokens._encode

    def counted(tokenizer: PreTrainedTokenizerBase, text: str) -> Any:
        asked.append(text)
        return plain(tokenizer, text)

    monkeypatch.setattr(tokens, "_encode", counted)
    monkeypatch.setattr(tokens._Kept, "limit", 10)
    tokens._kept.clear()
    for text in ("one", "two", "one", "two", "one"):
        assert encode(tokenizer, text) == plain(tokenizer, text)
    assert asked == ["one", "two"]
    # Three of them have 11 characters.
    for text in ("three", "three", "one"):
        assert encode(tokenizer, text) == plain(tokenizer, text)
    assert asked == ["one", "two", "three", "one"]
