"""A later batch costs what the second one did: the same operations, the same memory."""

import gc
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, TypeGuard

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sphere_bench.build import build_editing, build_model, build_setup
from sphere_bench.config.composition import compose_config
from sphere_bench.data.configured import build_dataset
from tests.every_editor import needs_peft

BATCHES = 10
# Every request takes all iterations, or batches would differ in what is left to do.
OVERRIDES = (
    "edits.total=3",
    "edits.batch_size=3",
    "model.values.steps=2",
    "model.values.loss_threshold=0",
    "values.contexts=['Nobody knew. {}']",
    "statistics.tokens=8000",
)
EDITORS = {
    "memit": (),
    "memit-seq": (),
    "alphaedit": (),
    "revive": (),
    "rect": ("editor.compensate=true",),
    "rlsedit": (),
    "encore": ("editor.method.argmax_hits=null",),
    "ultraedit": (),
    "stableedit": (),
    "crispedit": ("editor.method.steps=2", "editor.method.loss_threshold=0"),
    "simie": (),
    "betaedit": (),
    "lyaplock": (),
    "lora": ("editor.method.steps=2",),
    "locft-bf-replay": ("editor.method.steps=2", "editor.method.loss_threshold=0"),
}


class Operations(TorchDispatchMode):
    """Counts operations by name and by the shapes that they work on, those of gradients too."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[Any, tuple[tuple[int, ...], ...]]] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        shapes = tuple(tuple(each.shape) for each in tensors_in((args, kwargs)))
        self.counts[function, shapes] += 1
        return function(*args, **(kwargs or {}))


def tensors_in(thing: object) -> Iterator[Tensor]:
    """The tensors among an operation's arguments."""
    if is_tensor(thing):
        yield thing
    elif isinstance(thing, tuple | list):
        for each in thing:
            yield from tensors_in(each)
    elif isinstance(thing, dict):
        yield from tensors_in(tuple(thing.values()))


def is_tensor(thing: object) -> TypeGuard[Tensor]:
    return issubclass(type(thing), Tensor)


def tensor_bytes(things: list[Any]) -> int:
    """Size of the storages behind the tensors among ``things``."""
    storages = {
        storage.data_ptr(): storage.nbytes()
        for storage in (thing.untyped_storage() for thing in things if is_tensor(thing))
    }
    return sum(storages.values())


@pytest.mark.parametrize(
    "editor_name",
    [pytest.param(name, marks=needs_peft if name == "lora" else ()) for name in EDITORS],
)
def test_operations_and_memory_do_not_grow_with_the_edits_made(editor_name: str) -> None:
    config = compose_config([f"editor={editor_name}", *OVERRIDES, *EDITORS[editor_name]])
    dataset = build_dataset(config)
    setup = build_setup(config, build_model(config), dataset)
    editing = build_editing(config, setup)
    requests = [record.request for record in dataset.records]
    # Counting takes most of the time, and the first batch also does what is done once, such as
    # finding the principal directions.
    operations: list[Operations] = []
    in_state, alive = [], []
    for batch in range(1, BATCHES + 1):
        with Operations() if batch > 1 else nullcontext() as seen:
            editing.edit(requests)
        if seen is not None:
            operations.append(seen)
        state: Mapping[str, Any] = editing.state_dict()
        in_state.append(tensor_bytes(tree_leaves(state)))
        if batch in (2, BATCHES):
            gc.collect()
            alive.append(tensor_bytes(gc.get_objects()))
    second, *later = (each.counts for each in operations)
    assert later and all(each == second for each in later)
    assert any(str(function).startswith("aten.mm") for function, _ in second)
    assert set(in_state) == {in_state[0]}
    assert (in_state[0] > 0) == (editor_name not in ("memit", "revive"))
    assert alive[1] == alive[0]
    assert all(torch.isfinite(weight).all() for weight in setup.weights.current.values())
