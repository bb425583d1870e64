"""The texts that an iteration of the value solver runs, in micro-batches, and their loss."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.prompts import essence_prompt, prompt_with_target, shared_beginning
from sphere_bench.editing.values.loss import Loss, terms
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.replay.blocks import Places
from sphere_bench.models.replay.packed import PackedBatch, takes_packed_tokens
from sphere_bench.models.replay.prefixes import Stems


@dataclass(frozen=True)
class MicroBatch:
    """Texts that share one forward and backward.

    Attributes:
        batch: their tokens.
        texts: what each of them is, in the order of ``batch``.
        before: log-probabilities after the e essence prompts, delta being 0, [e, vocab].
        weight: of a text with a target in the loss of its request.
        kl_factor: weight of an essence prompt in it.
    """

    batch: PackedBatch
    texts: list["_Text"]
    before: Tensor
    weight: float
    kl_factor: float

    def loss(self, delta: Tensor) -> Loss:
        read, count = self._read, len(self.before)
        logits = self.batch.logits(self._edited(delta), read.places)
        divergence, nll = terms(logits, self.before, read.asked)
        right = logits.detach()[count:].argmax(dim=1) == read.asked
        essences, targets = read.owners[:count], read.owners[count:]
        none = nll.new_zeros(len(delta))
        return Loss(
            none.index_add(0, targets, read.shares * nll).index_add(
                0, essences, self.kl_factor * divergence
            ),
            none.index_add(0, targets, (read.counted & right).to(none)),
            none.index_add(0, targets, (read.counted & ~right).to(none)),
        )

    def keep(self, running: Sequence[bool]) -> "MicroBatch | None":
        """The same with only the requests that are running; ``None`` if none of these is here."""
        kept = [place for place, text in enumerate(self.texts) if running[text.request]]
        if len(kept) == len(self.texts):
            return self
        if not kept:
            return None
        essences = [running[text.request] for text in self.texts if not text.target]
        return replace(
            self,
            batch=self.batch.keep(kept),
            texts=[self.texts[place] for place in kept],
            before=self.before[[place for place, kept in enumerate(essences) if kept]],
        )

    def _edited(self, delta: Tensor) -> Tensor:
        """The output of layer z, with each request's delta added at the subject's last token."""
        hidden = self.batch.hidden
        added = delta.index_select(0, self._owners)
        return hidden.index_add(0, self._firsts, added.to(hidden.dtype))

    @cached_property
    def _firsts(self) -> Tensor:
        return torch.tensor(self.batch.firsts, device=self.batch.hidden.device)

    @cached_property
    def _owners(self) -> Tensor:
        return torch.tensor([text.request for text in self.texts], device=self.batch.hidden.device)

    @cached_property
    def _read(self) -> "_Read":
        essences, targets = [], []
        for text, first in zip(self.texts, self.batch.firsts, strict=True):
            # The last target token is predicted after all of the text's tokens.
            behind = first + len(text.ids) - text.start - len(text.target)
            if not text.target:
                essences.append((first, text.request))
            for place, token in enumerate(text.target, start=behind):
                share = self.weight / len(text.target)
                targets.append((place, text.request, token, share, text.kind > 0))
        device = self.before.device
        places, owners = zip(*essences, *(target[:2] for target in targets), strict=True)
        return _Read(
            self.batch.places(places),
            torch.tensor(owners, device=device),
            torch.tensor([token for _, _, token, *_ in targets], dtype=torch.long, device=device),
            torch.tensor([share for *_, share, _ in targets], device=device),
            torch.tensor([other for *_, other in targets], dtype=torch.bool, device=device),
        )


class _Read(NamedTuple):
    """What is read of a forward: first the essence prompts, then all target tokens.

    Attributes:
        places: of the e + m tokens after which a prediction is read.
        owners: their requests, [e + m].
        asked: the target tokens, [m].
        shares: weight of each target token in the loss of its request, [m].
        counted: whether its prompt is another than the bare one, [m].
    """

    places: Places
    owners: Tensor
    asked: Tensor
    shares: Tensor
    counted: Tensor


def micro_batches(
    loaded: LoadedModel,
    upper: LoadedModel,
    requests: Sequence[EditRequest],
    layer: int,
    contexts: Sequence[str],
    tokens_per_batch: int,
    kl_factor: float,
    whole: bool | None = None,
) -> tuple[list[MicroBatch], Tensor]:
    """The texts of the requests, and the output of ``layer`` before optimisation.

    Args:
        loaded: the model, which runs the layers up to ``layer``.
        upper: the model that runs the layers above it.
        requests: n edits.
        layer: z.
        contexts: templates with one ``{}``; the first is the bare prompt.
        tokens_per_batch: suffix tokens in a micro-batch.
        kl_factor: weight of the essence prompts.
        whole: whether ``upper`` takes packed tokens; ``None`` is found out.

    Returns:
        The micro-batches, and h0 [n, d_model], the output at the subjects in the bare prompts.
    """
    texts = list(_texts(loaded, requests, contexts))
    stems = Stems.build(
        loaded,
        [
            shared_beginning([text.ids[: text.start] for text in texts if text.kind == kind])
            for kind in range(len(contexts) + 1)
        ],
        layer,
        upper,
    )
    if whole is None:
        whole = takes_packed_tokens(upper, layer)
    width = loaded.model.config.hidden_size
    initial = torch.empty(len(requests), width, device=loaded.device_of(layer))
    batches = []
    for group in _shared(texts, tokens_per_batch):
        batch = PackedBatch.build(
            loaded,
            [text.ids for text in group],
            [text.start for text in group],
            layer,
            upper,
            stems,
            [text.kind for text in group],
            whole=whole,
        )
        own = [group[index] for index in batch.order]
        bare = [index for index, text in enumerate(own) if text.kind == 0]
        initial[[own[index].request for index in bare]] = batch.hidden[
            [batch.firsts[index] for index in bare]
        ].to(initial.dtype)
        before = _log_probabilities(batch, [i for i, text in enumerate(own) if not text.target])
        batches.append(MicroBatch(batch, own, before, 1 / len(contexts), kl_factor))
    return batches, initial


def _shared(texts: Sequence["_Text"], tokens_per_batch: int) -> list[list["_Text"]]:
    """The texts in as few groups as the tokens behind the subjects allow, of similar length."""
    groups: list[list[_Text]] = []
    room = 0
    for text in sorted(texts, key=lambda text: len(text.ids) - text.start):
        length = len(text.ids) - text.start
        if length > room:
            groups.append([])
            room = max(tokens_per_batch, length)
        groups[-1].append(text)
        room -= length
    return groups


class _Text(NamedTuple):
    """A text to run for a request.

    Attributes:
        ids: tokens, up to the last one after which a prediction is read.
        start: index of the subject's last token.
        request: index of the request.
        kind: index of the context, or the number of contexts for the essence prompt.
        target: tokens to predict, the last one after all of ``ids``; none for the essence prompt.
    """

    ids: list[int]
    start: int
    request: int
    kind: int
    target: list[int]


def _texts(
    loaded: LoadedModel, requests: Sequence[EditRequest], contexts: Sequence[str]
) -> Iterator[_Text]:
    """The essence prompts, then every request in every context."""
    for index, request in enumerate(requests):
        ids, start = essence_prompt(loaded.tokenizer, request)
        yield _Text(ids, start, index, kind=len(contexts), target=[])
    for index, request in enumerate(requests):
        for kind, context in enumerate(contexts):
            ids, start, length = prompt_with_target(loaded.tokenizer, request, context)
            # No prediction is read after the target's last token.
            yield _Text(ids[:-1], start, index, kind, target=ids[-length:])


@torch.no_grad()
def _log_probabilities(batch: PackedBatch, texts: Sequence[int]) -> Tensor:
    """Log-probabilities after the first suffix token of some texts, [n, vocab]."""
    device = batch.blocks[0].tokens.device
    if not texts:
        return torch.empty(0, 1, device=device)
    batch = batch.keep(texts)
    return batch.logits(batch.hidden, batch.places(batch.firsts)).log_softmax(dim=1)
