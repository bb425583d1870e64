"""Agreement with the unedited model on prompts that an edit must leave alone."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sphere_bench.data.records import EvalPrompt, PromptKind
from sphere_bench.evaluation.columns import Column, Declared
from sphere_bench.evaluation.metrics import mean_of_kind
from sphere_bench.evaluation.probe import Findings, Moment, ProbeSetup
from sphere_bench.evaluation.prompts import Asked, asked_prompts, by_record
from sphere_bench.evaluation.scopes import Sample, check_sizes
from sphere_bench.evaluation.scoring import TargetPlace, target_place
from sphere_bench.models.batching import backing_off, launch_price, pad_right, token_batches
from sphere_bench.models.hooks import select_positions
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.tokens import encode

KEY = "probes.locality"
AGREEMENT = "agreement"


class Prediction(NamedTuple):
    """What a model predicts behind a prompt, on the CPU.

    Attributes:
        argmax: the likeliest token at each of the answer's places, teacher forced, [t]; -1 where
            the model puts out NaN.
        log_probs: of the first token behind the prompt, [vocab], float32.
    """

    argmax: Tensor
    log_probs: Tensor


class Locality:
    """Compares the model with the unedited one on the prompts whose true answer should stay.

    What the unedited model predicts is measured at step 0, and for a record that comes into a scope
    later as soon as it does, with the pretrained weights put back for that time. It is part of
    every checkpoint, for the records that are looked at: it does not grow with the stream.

    Args:
        setup: the run's model, records and weights.
        records: at most so many records of each scope, the same ones at every step as far as they
            can be; null is all.
        prompts: at most so many prompts of each kind in a record, the first ones; null is all. For
            each a number for each token of the vocabulary is kept: 0.5 MB with 128,000 tokens.
    """

    def __init__(
        self, setup: ProbeSetup, records: int | None = 50, prompts: int | None = 2
    ) -> None:
        check_sizes(KEY, records=records, prompts=prompts)
        self.setup = setup
        self.prompts = prompts
        self._sample = Sample(len(setup.dataset.records), records, setup.seed)
        self._kinds = {kind.name: kind for kind in setup.dataset.kinds if kind.wants == "true"}
        self._unedited: dict[str, Prediction] = {}

    @property
    def declares(self) -> Declared:
        columns = []
        for kind in self._kinds.values():
            same = (
                f"share of {kind.name} prompts whose argmax tokens, at the answer's places, are "
                "those of the unedited model"
            )
            far = f"KL(unedited || edited) of the first token behind {kind.name} prompts"
            name = f"{kind.metric}_{AGREEMENT}"
            columns += [
                Column(
                    *(name, "real", same, "%"),
                    metric=kind.metric,
                    measure=AGREEMENT,
                    shown=True,
                ),
                Column(f"{kind.name}_kl", "real", far, "nats"),
            ]
        return Declared(scope=tuple(columns))

    def measure(self, moment: Moment) -> Findings:
        scopes = self._sample.of_each(moment.scopes)
        asked = [
            each
            for each in asked_prompts(self.setup.dataset, moment, scopes, self.prompts)
            if each.prompt.kind in self._kinds
        ]
        prompts = {_name(each): each.prompt for each in asked}
        now = self._predictions(prompts)
        if moment.step == 0:
            self._unedited = now
        self._remember(prompts)
        agreement = {name: _agreement(self._unedited[name], now[name]) for name in prompts}
        divergence = {name: _divergence(self._unedited[name], now[name]) for name in prompts}
        same = by_record((each, agreement[_name(each)]) for each in asked)
        far = by_record((each, divergence[_name(each)]) for each in asked)
        found: dict[str, dict[str, float]] = {scope: {} for scope in scopes}
        for scope, row in found.items():
            for kind in self._kinds.values():
                share = mean_of_kind(same.get(scope, []), kind)
                row[f"{kind.metric}_{AGREEMENT}"] = 100.0 * share
                row[f"{kind.name}_kl"] = _mean_divergence(far.get(scope, []), kind)
        return Findings(scopes=found)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {name: prediction._asdict() for name, prediction in self._unedited.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._unedited = {name: Prediction(**prediction) for name, prediction in state.items()}

    def _remember(self, prompts: Mapping[str, EvalPrompt]) -> None:
        """Have the unedited model's predictions on ``prompts``, and on no others."""
        missing = {name: prompts[name] for name in prompts if name not in self._unedited}
        if missing:
            with self.setup.weights.unedited():
                self._unedited.update(self._predictions(missing))
        self._unedited = {name: self._unedited[name] for name in prompts}

    def _predictions(self, prompts: Mapping[str, EvalPrompt]) -> dict[str, Prediction]:
        """What the model as it is predicts on each prompt."""
        loaded = self.setup.loaded
        places = {name: _place(loaded, prompt) for name, prompt in prompts.items()}
        names = list(places)

        def predict_all(size: int) -> dict[str, Prediction]:
            found: dict[str, Prediction] = {}
            lengths = [len(places[name].row) for name in names]
            for batch in token_batches(lengths, size, launch_price(loaded.device)):
                together = [names[index] for index in batch]
                predicted = _predict(loaded, [places[name] for name in together])
                found.update(zip(together, predicted, strict=True))
            return found

        return backing_off(predict_all, self.setup.tokens_per_batch)


def _name(asked: Asked) -> str:
    """Of a prompt in the state; the same in every scope."""
    return f"{asked.record}-{asked.place}"


def _place(loaded: LoadedModel, prompt: EvalPrompt) -> TargetPlace:
    """Where the answer is predicted; without an answer, where its first token would be."""
    if prompt.target_true is not None:
        return target_place(loaded, prompt.prompt, prompt.target_true)
    ids = encode(loaded.tokenizer, prompt.prompt.rstrip()).ids
    return TargetPlace(tuple(ids), range(len(ids) - 1, len(ids)), [])


@torch.no_grad()
def _predict(loaded: LoadedModel, places: list[TargetPlace]) -> list[Prediction]:
    """In one forward pass."""
    lengths = torch.tensor([len(place.columns) for place in places])
    rows = torch.arange(len(places)).repeat_interleave(lengths)
    columns = torch.tensor([column for place in places for column in place.columns])
    inputs = pad_right([place.row for place in places]).to(loaded.device)
    with select_positions(loaded.layout.head, rows.to(loaded.device), columns.to(loaded.device)):
        output = loaded.model(input_ids=inputs, use_cache=False)
    logits = output.logits[0].float()
    best, argmax = logits.max(dim=-1)
    argmax = argmax.masked_fill(best.isnan(), -1).cpu()
    first = lengths.cumsum(0) - lengths
    log_probs = logits[first.to(loaded.device)].log_softmax(dim=-1).cpu()
    return [
        # Copies: a part would keep the whole batch in memory.
        Prediction(tokens.clone(), row.clone())
        for tokens, row in zip(argmax.split(lengths.tolist()), log_probs, strict=True)
    ]


def _agreement(unedited: Prediction, edited: Prediction) -> float:
    """1 if the likeliest tokens are the same at all places, else 0."""
    return float(torch.equal(unedited.argmax, edited.argmax))


def _divergence(unedited: Prediction, edited: Prediction) -> float:
    """KL(unedited || edited) of the first token, in nats; what has no probability adds nothing."""
    log_p, log_q = unedited.log_probs.double(), edited.log_probs.double()
    p = log_p.exp()
    return float(torch.where(p > 0, p * (log_p - log_q), 0.0).sum())


def _mean_divergence(records: Sequence[Sequence[tuple[str, float]]], kind: PromptKind) -> float:
    """NaN where the edited model puts out NaN on a prompt: the mean of the others would flatter."""
    values = (value for record in records for name, value in record if name == kind.name)
    return math.nan if any(map(math.isnan, values)) else mean_of_kind(records, kind)
