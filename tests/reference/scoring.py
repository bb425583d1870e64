"""Scores of targets as published: one record at a time, all logits, token after token."""

from collections.abc import Sequence

import torch

from sphere_bench.evaluation.scoring import TargetScore
from sphere_bench.models.batching import pad_right
from sphere_bench.models.loading import LoadedModel


@torch.no_grad()
def score_record(loaded: LoadedModel, pairs: Sequence[tuple[str, str]]) -> list[TargetScore]:
    """Scores of one record's prompts with their targets, in one padded batch."""
    rows = [loaded.tokenizer(f"{prompt} {target}")["input_ids"] for prompt, target in pairs]
    logits = loaded.model(input_ids=pad_right(rows).to(loaded.device), use_cache=False).logits
    scores = []
    for row, (ids, (prompt, _)) in enumerate(zip(rows, pairs, strict=True)):
        nll, matches = [], []
        for place in range(len(loaded.tokenizer(prompt)["input_ids"]), len(ids)):
            predicted = logits[row, place - 1].double()
            nll.append(-predicted.log_softmax(dim=0)[ids[place]].item())
            matches.append(predicted.argmax().item() == ids[place])
        scores.append(TargetScore(sum(nll) / len(nll), tuple(matches)))
    return scores
