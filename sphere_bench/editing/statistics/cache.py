"""Cache on disk for second moments of keys: computed once for a model and a corpus."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sphere_bench.editing.statistics.moment_files import read_own, write_own
from sphere_bench.editing.statistics.second_moments import (
    TOKENS_PER_BATCH,
    SecondMoments,
    double_device,
    module_names,
    second_moments,
)
from sphere_bench.editing.statistics.texts import OrdinaryText
from sphere_bench.errors import SphereBenchError
from sphere_bench.models.fingerprint import model_fingerprint
from sphere_bench.models.loading import LoadedModel

logger = logging.getLogger(__name__)


class CachedStatistics:
    """C of some layers over ordinary text, from the cache or computed and put there.

    What the result depends on is the key in the cache: the model's configuration, tokenizer and
    weights, the layers and their projections, the precision of the forwards, and what is read of
    the corpus. The name and place of the model's folder do not matter.

    Args:
        loaded: the unedited model.
        layers: see :func:`second_moments`.
        text: what is read.
        folder: of the cache; ``None`` is :func:`default_cache_dir`.
        held_out: how many tokens :meth:`held_out_moments` are of; 0 for none.
        tokens_per_batch, precision: see :func:`second_moments`.
        fingerprint: of the model, if it is known: it takes a pass over all weights.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        layers: Sequence[int],
        text: OrdinaryText,
        folder: str | Path | None = None,
        *,
        held_out: int = 0,
        tokens_per_batch: int = TOKENS_PER_BATCH,
        precision: torch.dtype | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.loaded, self.layers, self.text, self.held_out = loaded, layers, text, held_out
        self.place = cache_folder(folder)
        self._tokens_per_batch = tokens_per_batch
        self._precision = precision
        self._fingerprint = fingerprint

    def second_moments(self) -> dict[int, Tensor]:
        """Layer to C [d_in, d_in], float64, on the layer's device.

        Raises:
            SphereBenchError: the cached file is damaged, the cache cannot be written, or the corpus
                cannot be read.
        """
        wanted = self.text.tokens
        found = self._read(self._content) or self._compute(
            self._content, self.text.read(self.loaded), wanted, "key statistics"
        )
        if found.tokens < wanted:
            logger.warning(
                "the corpus for key statistics ends after %d of %d tokens: name a larger "
                "statistics.corpus",
                found.tokens,
                wanted,
            )
        return found.moments

    def held_out_moments(self) -> dict[int, Tensor]:
        """The same over text that is not read; empty where there is none, or none is wanted.

        Raises:
            SphereBenchError: as :meth:`second_moments`.
        """
        if not self.held_out:
            return {}
        content = {**self._content, "held_out": self.held_out}
        found = self._read(content)
        if found is None:
            texts = self.text.held_out(self.loaded)
            first = next(texts, None)
            if first is None:
                logger.warning(
                    "no text is left to check a null space on: name a larger statistics.corpus"
                )
                return {}
            texts = chain([first], texts)
            found = self._compute(content, texts, self.held_out, "held-out key statistics")
        return found.moments

    @cached_property
    def _content(self) -> Mapping[str, Any]:
        loaded = self.loaded
        return {
            "model": self._fingerprint or model_fingerprint(loaded),
            "dtype": str(self._precision or loaded.dtype),
            "layers": module_names(loaded, self.layers),
            **self.text.content(loaded),
        }

    def _file(self, content: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return self.place / f"{key[:32]}.safetensors"

    def _read(self, content: Mapping[str, Any]) -> SecondMoments | None:
        file = self._file(content)
        if not file.exists():
            return None
        logger.info("key statistics from %s", file)
        try:
            moments, tokens = read_own(file)
            there = {
                each: moments[each].to(double_device(self.loaded, each)) for each in self.layers
            }
            return SecondMoments(there, tokens)
        except (ValueError, KeyError) as error:
            raise SphereBenchError(
                f"cached key statistics are damaged: delete {file} and run again"
            ) from error

    def _compute(
        self, content: Mapping[str, Any], texts: Iterable[str], tokens: int, name: str
    ) -> SecondMoments:
        found = second_moments(
            self.loaded,
            self.layers,
            texts,
            tokens,
            max_length=self.text.max_length,
            tokens_per_text=self.text.tokens_per_text,
            tokens_per_batch=self._tokens_per_batch,
            precision=self._precision,
            name=name,
        )
        file = self._file(content)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_own(file, found, content)
        except OSError as error:
            raise SphereBenchError(
                f"statistics.cache={file.parent}: cannot write there ({error.strerror or error}): "
                "give a folder that can be written"
            ) from error
        return found


def cache_folder(own: str | Path | None = None) -> Path:
    """``own``; if it is ``None``, :func:`default_cache_dir`."""
    return default_cache_dir() if own is None else Path(own).expanduser()


def default_cache_dir() -> Path:
    """``statistics`` in $SPHERE_BENCH_CACHE, or in ~/.cache/sphere-bench if that is not set."""
    root = os.environ.get("SPHERE_BENCH_CACHE") or "~/.cache/sphere-bench"
    return Path(root).expanduser() / "statistics"
