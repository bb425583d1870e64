"""Tokenizers of every family, trained here on a few sentences so that words fall into pieces."""

import json
from collections.abc import Callable

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
TEXTS = [
    "The mother tongue of Danielle Darrieux is French, and that of Bora Đorđević is Serbian.",
    "Café Kraków lies in the old town of Kraków; 東京 is the capital of Japan.",
    "Which company made the ship? It was built by Bethlehem Steel in San Francisco.",
    "What sport does she play? She is a professional player of basketball, not of football.",
] * 3
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level(bos: bool) -> Tokenizer:
    """GPT-2's family without a BOS, Llama 3's with one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=BYTES, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if bos:
        tokenizer.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=False), _template(tokenizer, "<s> $A")]
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def unigram(template: str) -> Tokenizer:
    """SentencePiece's unigram family, T5's with an EOS behind every text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = _template(tokenizer, template)
    return tokenizer


def sentencepiece_bpe() -> Tokenizer:
    """Llama 2's family: spaces made by the normalizer, unknown characters as bytes, a BOS."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    # SentencePiece learns pieces of words that begin with their space, and applies them to a text
    # as a whole.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=40,
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    tokenizer.post_processor = _template(tokenizer, "<s> $A")
    # The trainer takes bytes only as special tokens, which a decoder may leave out.
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in SPECIAL]
    return Tokenizer.from_str(json.dumps(content))


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": lambda: byte_level(bos=False),
    "byte-level-bos": lambda: byte_level(bos=True),
    "unigram-bos": lambda: unigram("<s> $A"),
    "unigram-eos": lambda: unigram("$A </s>"),
    "sentencepiece-bpe-bos": sentencepiece_bpe,
}


def build(family: str, padding_side: str) -> PreTrainedTokenizerBase:
    """The tokenizer as transformers would load it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=FAMILIES[family](),
        pad_token=AddedToken("<pad>", special=True),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side=padding_side,
    )


def _template(tokenizer: Tokenizer, single: str) -> processors.TemplateProcessing:
    special = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    return processors.TemplateProcessing(single=single, special_tokens=special)
