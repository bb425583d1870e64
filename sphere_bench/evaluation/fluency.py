"""Whether the model still writes well: texts that it samples about the subjects of edits.

Meng et al. 2022, https://arxiv.org/abs/2202.05262: fluency is the n-gram entropy of a text, which
falls when the model repeats itself; consistency is how much the texts resemble those about other
things that have the new attribute.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sphere_bench.data.snippets import read_snippets
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.columns import Column, Declared
from sphere_bench.evaluation.metrics import mean
from sphere_bench.evaluation.probe import Findings, Moment, ProbeSetup
from sphere_bench.evaluation.scopes import Sample, check_sizes
from sphere_bench.models.decoding import Choose, check_room, continuations
from sphere_bench.models.tokens import encode

KEY = "probes.fluency"
#: Tokens of a text, those of its prompt among them.
TOKENS = 100
TOP_K = 5
# Sizes of n-grams and their weights in the entropy.
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}
_WORDS = re.compile(r"\w+|[^\w\s]")


class Fluency:
    """Lets the model go on with the generation prompts of the records.

    The random numbers of a text depend on the run's seed, the record and the prompt alone.

    Args:
        setup: the run's model and records.
        records: at most so many records of each scope, the same ones at every step as far as they
            can be; null is all.
        corpus: texts for consistency: a JSON file as CounterFact's attribute snippets,
            ``bundled`` (the tiny GPT-2's world), or null for none. It needs scikit-learn.

    Raises:
        SphereBenchError: the corpus cannot be read, or a prompt has no room in the model.
    """

    def __init__(
        self, setup: ProbeSetup, records: int | None = 5, corpus: str | None = None
    ) -> None:
        check_sizes(KEY, records=records)
        self.setup = setup
        self.references = None if corpus is None else References(corpus)
        self._sample = Sample(len(setup.dataset.records), records, setup.seed)
        cases = [record.case for record in setup.dataset.records]
        check_room(setup.loaded, (each for case in cases for each in case.generation_prompts), KEY)

    @property
    def declares(self) -> Declared:
        return Declared(
            scope=(
                Column("fluency", "real", "n-gram entropy of sampled texts in bits, times 100"),
                Column(
                    "consistency",
                    "real",
                    "their cosine with the texts of probes.fluency.corpus, times 100",
                ),
            )
        )

    def measure(self, moment: Moment) -> Findings:
        cases = [record.case for record in self.setup.dataset.records]
        scopes = self._sample.of_each(
            {
                scope: [each for each in records if cases[each].generation_prompts]
                for scope, records in moment.scopes.items()
            }
        )
        wanted = sorted({each for records in scopes.values() for each in records})
        texts = self.texts(wanted)
        fluency = {each: 100 * mean(map(entropy, texts[each])) for each in wanted}
        consistency = {each: self._consistency(each, texts[each]) for each in wanted}
        return Findings(
            scopes={
                scope: {
                    "fluency": mean(fluency[each] for each in records),
                    "consistency": mean(consistency[each] for each in records),
                }
                for scope, records in scopes.items()
            }
        )

    def texts(self, records: Sequence[int]) -> dict[int, list[str]]:
        """For each record the texts that the model makes of its generation prompts."""
        loaded, cases = self.setup.loaded, self.setup.dataset.records
        asked = [
            (each, encode(loaded.tokenizer, prompt.rstrip()).ids)
            for each in records
            for prompt in cases[each].case.generation_prompts
        ]
        rows = [ids for _, ids in asked]
        noise = [self._noise(each) for each in records]
        said = continuations(
            loaded,
            rows,
            [TOKENS] * len(rows),
            sampling(torch.cat(noise) if noise else torch.empty(0)),
            tokens_per_batch=self.setup.tokens_per_batch,
        )
        texts: dict[int, list[str]] = {each: [] for each in records}
        for (each, ids), more in zip(asked, said, strict=True):
            decoded = loaded.tokenizer.decode([*ids, *more], skip_special_tokens=True)
            texts[each].append(str(decoded))
        return texts

    def _noise(self, record: int) -> Tensor:
        """Gumbel noise for each prompt of a record, place and candidate, [prompts, 100, 5]."""
        case = self.setup.dataset.records[record].case
        seed = random.Random(f"{self.setup.seed} {case.case_id}").getrandbits(63)
        drawn = torch.rand(
            len(case.generation_prompts),
            TOKENS,
            TOP_K,
            generator=torch.Generator().manual_seed(seed),
        )
        return -torch.log(-torch.log(drawn.clamp(min=1e-12)))

    def _consistency(self, record: int, texts: Sequence[str]) -> float:
        """NaN without reference texts for the record's new attribute."""
        attribute = self.setup.dataset.records[record].case.attribute
        if self.references is None or attribute is None:
            return math.nan
        return 100 * self.references.similarity(" ".join(texts), attribute)


class References:
    """Texts about the things that have an attribute, as TF-IDF vectors fitted on all of them.

    Args:
        source: see :func:`~sphere_bench.data.snippets.read_snippets`.

    Raises:
        SphereBenchError: they cannot be read, or scikit-learn is missing.
    """

    def __init__(self, source: str) -> None:
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError as error:
            raise SphereBenchError(
                f"{KEY}.corpus={source} needs scikit-learn: pip install 'sphere-bench[fluency]'"
            ) from error
        self._texts = read_snippets(source, f"{KEY}.corpus")
        self._vectorizer: Any = TfidfVectorizer()
        self._vectorizer.fit(text for texts in self._texts.values() for text in texts)

    def similarity(self, text: str, attribute: tuple[str, str]) -> float:
        """Cosine of the text and the joined texts of ``attribute``; NaN where there are none."""
        texts = self._texts.get(attribute)
        if not texts:
            return math.nan
        ours, theirs = self._vectorizer.transform([text, " ".join(texts)])
        return float((ours @ theirs.T).sum())


def sampling(noise: Tensor) -> Choose:
    """Sampling from the ``TOP_K`` likeliest tokens, with the random numbers drawn beforehand.

    Args:
        noise: Gumbel noise [rows, places, TOP_K]: the largest sum of log-probability and noise is
            a sample.
    """

    def choose(logits: Tensor, rows: Sequence[int], places: Sequence[int]) -> Tensor:
        best = logits.float().topk(TOP_K, dim=-1)
        drawn = noise[list(rows), list(places)].to(best.values.device)
        return best.indices.gather(-1, (best.values + drawn).argmax(-1, keepdim=True))[:, 0]

    return choose


def entropy(text: str) -> float:
    """(2/3 H2 + 4/3 H3) / 2, H_n the entropy in bits of the text's n-grams of words.

    Punctuation marks count as words. A text without n-grams has the entropy 0.
    """
    words = _WORDS.findall(text)
    weighted = [weight * _entropy_of_ngrams(words, n) for n, weight in _WEIGHTS.items()]
    return sum(weighted) / len(weighted)


def _entropy_of_ngrams(words: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    total = sum(counts.values())
    return -sum(count / total * math.log2(count / total) for count in counts.values())
