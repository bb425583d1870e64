"""Which text key statistics are of, and which text is held out to check them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch

from sphere_bench.data.corpus import KEY, Order, corpus_fingerprint, corpus_texts
from sphere_bench.editing.statistics.second_moments import MAX_LENGTH
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.sampling import self_written_texts
from sphere_bench.models.tokens import encode, token_windows

GENERATED = "generated"
# In random order every eleventh text is held out: a tenth of what is read, however long that is.
_HELD_OUT_EVERY = 11
# Where the held-out part of an endless corpus begins, far behind all that is read.
_HELD_OUT_BATCH = 1_000_000


def ordinary_texts(
    loaded: LoadedModel, corpus: str, key: str = KEY, order: Order = "file"
) -> Iterator[str]:
    """The texts of a corpus; ``generated`` is text that the unedited model writes itself.

    Args:
        key: of the configuration, for messages; see :func:`corpus_texts`.
        order: see :func:`corpus_texts`; generated texts are random as they are.
    """
    if corpus == GENERATED:
        return self_written_texts(loaded)
    return corpus_texts(corpus, key, order)


@dataclass(frozen=True)
class OrdinaryText:
    """What is read of a corpus.

    Attributes:
        corpus: see :func:`ordinary_texts`.
        tokens: how many tokens.
        order: of the texts, see :func:`corpus_texts`.
        tokens_per_text: at most so many of one text, from its beginning; ``None`` is no limit.
        max_length: tokens in a window; a longer text is read in several.
    """

    corpus: str
    tokens: int
    order: Order = "random"
    tokens_per_text: int | None = None
    max_length: int = MAX_LENGTH

    def content(self, loaded: LoadedModel) -> dict[str, object]:
        """All that decides which tokens are read, as plain values."""
        generated = self.corpus == GENERATED
        content: dict[str, object] = {
            "corpus": GENERATED if generated else corpus_fingerprint(self.corpus),
            "tokens": self.tokens,
            "tokens_per_text": self.tokens_per_text,
            "max_length": self.max_length,
        }
        if not generated:
            return {**content, "order": self.order}
        # A last digit may decide which token is sampled, and with it the rest of a text.
        return {**content, "device": device_kind(loaded.device), "threads": torch.get_num_threads()}

    def read(self, loaded: LoadedModel) -> Iterator[str]:
        """The texts to read, until there are ``tokens`` of them."""
        texts = enumerate(ordinary_texts(loaded, self.corpus, order=self.order))
        return (text for index, text in texts if not self._holds_out(index))

    def windows(self, loaded: LoadedModel) -> Iterator[list[int]]:
        """The tokens that are read, in rows of one text each; see :func:`token_windows`."""
        return token_windows(
            loaded, self.read(loaded), self.tokens, self.max_length, self.tokens_per_text
        )

    def held_out(self, loaded: LoadedModel) -> Iterator[str]:
        """Texts that are not read, nor equal to one that is; each text once.

        In random order these are every eleventh text and all behind the last one read, in the
        file's order the latter alone. A corpus that ends early leaves a tenth, or nothing.
        """
        if self.corpus == GENERATED:
            yield from self_written_texts(loaded, _HELD_OUT_BATCH)
            return
        texts = enumerate(ordinary_texts(loaded, self.corpus, order=self.order))
        known: set[str] = set()
        aside: list[str] = []
        left = self.tokens
        for index, text in texts:
            if self._holds_out(index):
                aside.append(text)
                continue
            known.add(text)
            left -= len(encode(loaded.tokenizer, text).ids[: self.tokens_per_text])
            if left <= 0:
                break
        for text in chain(aside, (text for _, text in texts)):
            if text not in known:
                known.add(text)
                yield text

    def _holds_out(self, index: int) -> bool:
        random = self.order == "random" and self.corpus != GENERATED
        return random and index % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1


def device_kind(device: torch.device) -> str:
    """The name of a GPU, or the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
