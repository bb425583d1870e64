"""What the value solver has to compute, what it does compute, and how fast the machine multiplies.

A request's delta changes its own suffixes only, subject's last token to target's last but one, in
the layers above z. That is the useful work: an iteration runs those tokens through those layers,
and the places whose logits are asked for through the head; every iteration but a request's last
one then takes the gradient of the activations. Before the first, every prefix runs once, what the
prompts behind a context or the essence prompts share once for all, and the suffixes run up to z.
Padding and attention scores are not counted; the last layer counts whole. Work is compared with
the machine at the precision of the layers above z.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import mean, median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.prompts import (
    PromptTokens,
    TargetTokens,
    essence_prompt,
    prompt_with_target,
    shared_beginning,
)
from sphere_bench.editing.values.micro_batches import micro_batches
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.precision import with_layers_in


class RequestWork(NamedTuple):
    """One iteration of one request: suffix tokens, and places whose logits are asked for."""

    tokens: int
    places: int


def request_work(setup: EditingSetup, request: EditRequest) -> RequestWork:
    """Counted over the prompts behind all contexts, and the essence prompt's one token."""
    tokenizer = setup.loaded.tokenizer
    texts = [prompt_with_target(tokenizer, request, context) for context in setup.contexts]
    suffixes = [len(text.ids) - 1 - text.subject_last for text in texts]
    return RequestWork(1 + sum(suffixes), 1 + sum(text.target_length for text in texts))


def useful_operations(
    setup: EditingSetup, requests: Sequence[EditRequest], iterations: Sequence[int]
) -> float:
    """Floating-point operations of a batch, two for every multiplication with a parameter.

    Args:
        iterations: in how many iterations each request took part.
    """
    layout, layer = setup.loaded.layout, setup.weights.layers[-1]
    lower = _parameters(layout.decoder_layers[: layer + 1])
    upper = _parameters(layout.decoder_layers[layer + 1 :])
    head = _parameters(layout.head)
    total = 0.0
    for request, count in zip(requests, iterations, strict=True):
        work = request_work(setup, request)
        passes = count + (count - 1)  # forward, and back but for the last one
        total += passes * (work.tokens * upper + work.places * head)
        # The suffixes up to z, and the unedited model's answer to the essence prompt.
        total += work.tokens * lower + (upper + head)
    return 2.0 * (total + _prefix_tokens(setup, requests) * (lower + upper))


def _prefix_tokens(setup: EditingSetup, requests: Sequence[EditRequest]) -> int:
    """Tokens before the subject's last in all prompts, those that all of a kind share once."""
    tokenizer = setup.loaded.tokenizer
    kinds: list[list[PromptTokens] | list[TargetTokens]] = [
        [essence_prompt(tokenizer, request) for request in requests]
    ]
    for context in setup.contexts:
        kinds.append([prompt_with_target(tokenizer, request, context) for request in requests])
    total = 0
    for texts in kinds:
        prefixes = [text.ids[: text.subject_last] for text in texts]
        shared = len(shared_beginning(prefixes))
        total += shared + sum(len(prefix) - shared for prefix in prefixes)
    return total


def _parameters(module: nn.Module) -> int:
    """Entries of the module's matrices."""
    return sum(matrix.numel() for matrix in module.parameters() if matrix.dim() > 1)


@contextmanager
def count_gradient_tokens(loaded: LoadedModel) -> Iterator[Counter[int]]:
    """Tokens, padding included, that each decoder layer takes in with a gradient to be found.

    Yields:
        Counts by the layer's ``id``; a solver's copy of the model counts as well, and all layers
        that a gradient goes through count the same.
    """
    kind = type(loaded.layout.decoder_layers[0])
    counts: Counter[int] = Counter()

    def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, kind) and inputs[0].requires_grad:
            counts[id(module)] += inputs[0].shape[:-1].numel()

    handle = register_module_forward_pre_hook(count)
    try:
        yield counts
    finally:
        handle.remove()


@dataclass
class MachineRates:
    """Rates of matrix products, sample by sample, and the seconds that taking them cost."""

    samples: dict[torch.dtype, list[float]]
    seconds: float = 0.0

    def mean(self) -> dict[torch.dtype, float]:
        return {dtype: mean(rates) for dtype, rates in self.samples.items()}


@contextmanager
def sample_rates(
    loaded: LoadedModel, dtypes: Sequence[torch.dtype], every: float = 10.0
) -> Iterator[MachineRates]:
    """Measure the machine before, behind, and every so many seconds within the value solver.

    A shared machine is not equally fast all the time: what the solver is held to is the rate at
    which it could have multiplied. A sample is taken where a decoder layer begins.
    """
    rates = MachineRates({dtype: [] for dtype in dtypes})
    kind = type(loaded.layout.decoder_layers[0])
    latest = 0.0

    def sample() -> float:
        nonlocal latest
        synchronize(loaded.device)
        started = perf_counter()
        for dtype, found in rates.samples.items():
            found.append(matrix_product_rate(loaded.device, dtype))
        latest = perf_counter()
        return latest - started

    def sample_now_and_then(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        solving = isinstance(module, kind) and inputs[0].requires_grad
        if solving and perf_counter() - latest >= every:
            rates.seconds += sample()

    sample()
    handle = register_module_forward_pre_hook(sample_now_and_then)
    try:
        yield rates
    finally:
        handle.remove()
    sample()


def matrix_product_rate(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Floating-point operations a second of a large square product, the median of several.

    After a second no further one is made: a processor without bfloat16 takes seconds for each.
    """
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        started = perf_counter()
        left @ right
        synchronize(device)
        seconds.append(perf_counter() - started)
        if sum(seconds) > 1:
            break
    return 2 * size**3 / median(seconds)


class Launches(NamedTuple):
    """What an iteration of the value solver asks of the host.

    Attributes:
        kernels: operations, forward and backward, that are no views.
        host: seconds to start them. On a device: until the host has nothing left to do. On a CPU,
            which starts and computes in turn: as many times what one takes in the smallest batch,
            where there is hardly anything to compute.
        whole: seconds of the iteration.
    """

    kernels: int
    host: float
    whole: float


def count_launches(setup: EditingSetup, requests: Sequence[EditRequest]) -> Launches:
    """Measured on an iteration that all requests take part in, the median of several."""
    kernels, host, whole = _iteration(setup, requests)
    if setup.loaded.device.type == "cpu":
        few, _, seconds = _iteration(replace(setup, contexts=setup.contexts[:1]), requests[:1])
        host = min(seconds / few * kernels, whole)
    return Launches(kernels, host, whole)


def _iteration(setup: EditingSetup, requests: Sequence[EditRequest]) -> tuple[int, float, float]:
    """Kernels, seconds until the host is done, and seconds until the device is."""
    loaded, layer, values = setup.loaded, setup.weights.layers[-1], setup.values
    above = range(layer + 1, len(loaded.layout))
    upper = with_layers_in(loaded, above, values.precision or loaded.dtype)
    batches, initial = micro_batches(
        loaded,
        upper,
        requests,
        layer,
        setup.contexts,
        setup.tokens_per_batch.size,
        values.kl_factor,
    )
    delta = torch.zeros_like(initial, requires_grad=True)

    def iterate() -> None:
        for batch in batches:
            batch.loss(delta).loss.sum().backward()

    iterate()  # which makes the indices
    with _CountedKernels() as counted:
        iterate()
    host, whole = [], []
    for _ in range(3):
        synchronize(loaded.device)
        started = perf_counter()
        iterate()
        host.append(perf_counter() - started)
        synchronize(loaded.device)
        whole.append(perf_counter() - started)
    return counted.kernels, median(host), median(whole)


class _CountedKernels(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        results = (each.alias_info for each in operation._schema.returns)
        is_view = any(alias is not None and not alias.is_write for alias in results)
        self.kernels += not is_view
        return operation(*args, **(kwargs or {}))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
