"""Keys of a batch at one layer, and the present output of the last edited layer."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.prompts import BARE, PromptTokens, prompt_up_to_subject
from sphere_bench.models.batching import Budget, backing_off, launch_price, pad_right, token_batches
from sphere_bench.models.hooks import capture, start_after
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.tokens import encode_continuation

# A module, and whether its input or its output is read.
Site = tuple[nn.Module, Literal["input", "output"]]


class Measurement(NamedTuple):
    """States of the model at the last subject tokens of n requests.

    Attributes:
        keys: inputs of one layer's projection, [d_in, n].
        hidden: outputs of the last edited layer in the bare prompts, [d_model, n].
    """

    keys: Tensor
    hidden: Tensor


class TokenKeys(NamedTuple):
    """Keys at every token of n texts, m tokens together.

    Attributes:
        owners: index of each token's text, m.
        layers: layer to the inputs of its projection, [m, d_in], in float32.
    """

    owners: list[int]
    layers: dict[int, Tensor]


class BatchReader:
    """Measures a batch at one layer after another, while the layers are being written.

    It keeps the prompts' hidden states after the layers that are finished, so that these layers do
    not run again. Once a layer has been measured, the layers before it must not be written again.

    Args:
        loaded: the model.
        requests: n edits.
        value_layer: the last edited layer; the hidden states are its outputs.
        contexts: templates with one ``{}``; the first is the bare prompt.
        tokens_per_batch: padded tokens in one forward.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        requests: Sequence[EditRequest],
        value_layer: int,
        contexts: Sequence[str],
        tokens_per_batch: int | Budget,
    ) -> None:
        self.loaded, self.value_layer = loaded, value_layer
        others = [context for context in contexts if context != BARE]
        self._shape = (len(requests), len(others), -1)
        self._bare = _PromptStates(loaded, _prompts(loaded, requests, [BARE]), tokens_per_batch)
        self._others = _PromptStates(loaded, _prompts(loaded, requests, others), tokens_per_batch)

    def measure(self, layer: int) -> Measurement:
        """Keys at ``layer`` and hidden states at the last edited layer, on the model as it is now.

        A key is a mean over contexts: the bare prompt has the weight 1/2, all others together too.

        Args:
            layer: the layer to edit next; layers come in rising order.
        """
        layout = self.loaded.layout
        key_site: Site = (layout.projection(layer), "input")
        value_site: Site = (layout.decoder_layers[self.value_layer], "output")
        keys, hidden = self._bare.read([key_site, value_site], behind=layer - 1)
        if self._shape[1]:
            (others,) = self._others.read([key_site], behind=layer - 1)
            keys = (keys + others.view(self._shape).mean(dim=1)) / 2
        return Measurement(keys.T, hidden.T)


def context_keys(
    loaded: LoadedModel,
    requests: Sequence[EditRequest],
    layer: int,
    contexts: Sequence[str],
    tokens_per_batch: int | Budget,
) -> Tensor:
    """Keys at ``layer`` in every context, [n, contexts, d_in]."""
    sites: list[Site] = [(loaded.layout.projection(layer), "input")]
    prompts = _prompts(loaded, requests, contexts)
    (keys,) = _PromptStates(loaded, prompts, tokens_per_batch).read(sites)
    return keys.view(len(requests), len(contexts), -1)


def token_keys(
    loaded: LoadedModel,
    requests: Sequence[EditRequest],
    layers: Sequence[int],
    tokens_per_batch: int | Budget,
) -> TokenKeys:
    """Keys at every token of the bare prompts with their new targets, a BOS included."""
    texts = [
        encode_continuation(loaded.tokenizer, request.prompt, request.target_new).ids
        for request in requests
    ]
    projections = {layer: loaded.layout.projection(layer) for layer in layers}

    @torch.no_grad()
    def read(size: int) -> TokenKeys:
        owners: list[int] = []
        found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        for group in token_batches(list(map(len, texts)), size, launch_price(loaded.device)):
            tokens = pad_right([texts[index] for index in group])
            lengths = torch.tensor([len(texts[index]) for index in group])
            # Found here: a mask on the device would have to be waited for.
            real = (torch.arange(tokens.shape[1]) < lengths[:, None]).nonzero().T  # [2, m]
            owners += [index for index in group for _ in texts[index]]
            with capture(projections, "input", stop=True) as captured:
                loaded.model.base_model(input_ids=tokens.to(loaded.device), use_cache=False)
            for layer, seen in captured.items():
                rows, columns = real.to(seen.device)
                found[layer].append(seen[rows, columns].float())
        return TokenKeys(owners, {layer: torch.cat(rows) for layer, rows in found.items()})

    return backing_off(read, tokens_per_batch)


def projection_outputs(
    loaded: LoadedModel, requests: Sequence[EditRequest], layer: int, tokens_per_batch: int | Budget
) -> Tensor:
    """The output of ``layer``'s projection, bias included, at the subjects, [n, d_model].

    It is read in the bare prompts.
    """
    sites: list[Site] = [(loaded.layout.projection(layer), "output")]
    prompts = _prompts(loaded, requests, [BARE])
    (outputs,) = _PromptStates(loaded, prompts, tokens_per_batch).read(sites)
    return outputs


def _prompts(
    loaded: LoadedModel, requests: Sequence[EditRequest], contexts: Sequence[str]
) -> list[PromptTokens]:
    return [
        prompt_up_to_subject(loaded.tokenizer, request, context)
        for request in requests
        for context in contexts
    ]


class _PromptStates:
    """Reads the states at chosen sites of the model, at the last tokens of prompts."""

    def __init__(
        self, loaded: LoadedModel, prompts: Sequence[PromptTokens], tokens_per_batch: int | Budget
    ) -> None:
        self.loaded, self.prompts = loaded, prompts
        self._budget = tokens_per_batch
        self._size = 0

    def read(self, sites: Sequence[Site], behind: int = -1) -> list[Tensor]:
        """The states at each site, [n, width], in float32.

        Args:
            sites: in the order in which a forward reaches them; it ends at the last one.
            behind: a layer before all sites; the next reading starts after it.
        """

        def read(tokens: int) -> list[Tensor]:
            if tokens != self._size:
                self._regroup(tokens)
            found = [group.read(self.loaded, sites, behind) for group in self._groups]
            states = [torch.cat(site) for site in zip(*found, strict=True)]
            return [state[self._order.to(state.device)].float() for state in states]

        return backing_off(read, self._budget)

    def _regroup(self, size: int) -> None:
        self._size = size
        indices = token_batches(
            [len(prompt.ids) for prompt in self.prompts],
            size,
            launch_price(self.loaded.device),
        )
        device = self.loaded.device
        self._groups = [
            _PromptGroup(
                pad_right([self.prompts[index].ids for index in group]).to(device),
                torch.tensor([self.prompts[index].subject_last for index in group], device=device),
            )
            for group in indices
        ]
        order = torch.tensor([index for group in indices for index in group], dtype=torch.long)
        self._order = order.argsort().to(device)


@dataclass
class _PromptGroup:
    """The prompts of one forward.

    Attributes:
        tokens: padded ids, [b, s].
        last: column of the last token, [b].
        layer: the last layer that need not run again; -1 if all must.
        hidden: output of that layer, [b, s, d_model].
    """

    tokens: Tensor
    last: Tensor
    layer: int = -1
    hidden: Tensor | None = None

    def read(self, loaded: LoadedModel, sites: Sequence[Site], behind: int) -> list[Tensor]:
        layers = loaded.layout.decoder_layers
        watched = list(sites)
        if behind > self.layer:
            watched.insert(0, (layers[behind], "output"))
        with torch.no_grad(), ExitStack() as stack:
            if self.hidden is not None:
                tuples = loaded.layers_return_tuples
                stack.enter_context(start_after(layers, self.layer, self.hidden, tuples=tuples))
            seen = [
                stack.enter_context(capture({0: module}, side, stop=index == len(watched) - 1))
                for index, (module, side) in enumerate(watched)
            ]
            loaded.model.base_model(input_ids=self.tokens, use_cache=False)
        if behind > self.layer:
            self.layer, self.hidden = behind, seen.pop(0)[0]
        return [_at(captured[0], self.last) for captured in seen]


def _at(states: Tensor, columns: Tensor) -> Tensor:
    """One column of each row of ``states`` [b, s, width], [b, width]."""
    rows = torch.arange(len(states), device=states.device)
    return states[rows, columns.to(states.device)]
