"""Perplexity of a fixed text: whether the edited model still knows how to write."""

from collections.abc import Sequence

import torch
from torch.nn import functional

from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.columns import Column, Declared
from sphere_bench.evaluation.probe import Findings, Moment, ProbeSetup
from sphere_bench.models.batching import backing_off, launch_price, pad_right, token_batches
from sphere_bench.models.hooks import select_positions
from sphere_bench.models.tokens import token_windows

MAX_LENGTH = 512


class Perplexity:
    """exp of the mean NLL of a text's tokens, each given those before it in its window.

    Args:
        setup: the run's model; it is read anew at every turn.
        tokens: how many tokens of the text, from its beginning; 0 leaves the probe out.
        corpus: ordinary text, named as in ``statistics.corpus``; a long text is cut into windows of
            512 tokens.

    Raises:
        SphereBenchError: no text is longer than a token.
    """

    stage = "evaluate"
    declares = Declared(
        step=(Column("perplexity", "real", "perplexity of perplexity.corpus after the step"),)
    )

    def __init__(self, setup: ProbeSetup, tokens: int = 1000, corpus: str = "bundled") -> None:
        self.loaded = setup.loaded
        self.tokens_per_batch = setup.tokens_per_batch
        self._windows: list[list[int]] = []
        if not tokens:
            return
        windows = token_windows(
            setup.loaded, setup.texts(corpus, "perplexity.corpus"), tokens, MAX_LENGTH
        )
        self._windows = [window for window in windows if len(window) > 1]
        if not self._windows:
            raise SphereBenchError(
                f"perplexity.tokens={tokens}: no text of perplexity.corpus has two tokens by then: "
                "raise it or name another corpus"
            )

    def measure(self, moment: Moment) -> Findings:
        return Findings(step={"perplexity": self.perplexity()} if self._windows else {})

    def perplexity(self) -> float:
        """The perplexity; NaN for a model that puts out NaN."""
        total = backing_off(self._nll, self.tokens_per_batch)
        predicted = sum(len(window) - 1 for window in self._windows)
        return (total / predicted).exp().item()

    @torch.no_grad()
    def _nll(self, tokens_per_batch: int) -> torch.Tensor:
        """Sum over all tokens but each window's first."""
        total = torch.zeros((), dtype=torch.float64)
        lengths = [len(window) - 1 for window in self._windows]
        for group in token_batches(lengths, tokens_per_batch, launch_price(self.loaded.device)):
            total += self._group_nll([self._windows[index] for index in group])
        return total

    def _group_nll(self, windows: Sequence[Sequence[int]]) -> float:
        device = self.loaded.device
        lengths = torch.tensor([len(window) - 1 for window in windows])
        rows = torch.arange(len(windows)).repeat_interleave(lengths)
        columns = torch.cat([torch.arange(length) for length in lengths])
        targets = torch.tensor([token for window in windows for token in window[1:]])
        with select_positions(self.loaded.layout.head, rows.to(device), columns.to(device)):
            output = self.loaded.model(
                input_ids=pad_right([window[:-1] for window in windows]).to(device),
                use_cache=False,
            )
        logits = output.logits[0].float()
        return functional.cross_entropy(logits, targets.to(device), reduction="sum").item()
