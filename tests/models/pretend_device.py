"""Two pretend accelerators: devices of torch whose tensors compute on the CPU.

They are as strict as GPUs where a CPU is not. An operation on tensors of several devices raises,
and every wait of the host is counted. No GPU is needed to find such mistakes.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

#: The configuration knows the name: torch has no such device of its own, a plugin brings it.
NAME = "npu"
DEVICES = (f"{NAME}:0", f"{NAME}:1")

# Operations that copy between devices.
_COPIES = {"_to_copy", "copy_"}
# CUDA takes places in tensors of the host here: it copies them.
_TAKES_PLACES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# What gives the host a number.
_NUMBERS = {"_local_scalar_dense", "equal", "is_nonzero"}
# The host has to know something that the device computes: a number, how many there are, whether a
# decomposition has failed.
_READS = {
    *_NUMBERS,
    *("nonzero", "masked_select", "bincount"),
    *("_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"),
    *("_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq"),
}
_PACKAGE = "/sphere_bench/"


class Waits:
    """How often the host waited, by kind and place.

    A kind is ``read`` (something of the device is fetched) or ``write`` (something of the host is
    copied to it, from memory that is not pinned). A place is a file of the package and a function.
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def total(self, kind: str) -> int:
        return sum(count for (each, _), count in self.counts.items() if each == kind)


class PretendTensor(Tensor):
    """A tensor on a pretend device. ``on_cpu`` has its numbers."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, on_cpu: Tensor, device: Any = NAME) -> "PretendTensor":
        made: PretendTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            on_cpu.size(),
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=torch.device(NAME, torch.device(device).index or 0),
        )
        made.on_cpu = on_cpu
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PretendTensor({self.on_cpu!r}, {self.device})"

    def tolist(self) -> Any:
        _note("read")
        return self.detach().on_cpu.tolist()  # type: ignore[attr-defined]

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: Sequence[Any] = (), named: Any = None
    ) -> Any:
        return _run(operation, args, named or {})

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class _Intercept(TorchDispatchMode):
    """Sees the operations that have no tensor of the device yet, such as making one."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Sequence[Any] = (), named: Any = None
    ) -> Any:
        return _run(operation, args, named or {})


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    """What torch asks of an accelerator. Outside of :func:`pretend_device` there is none."""

    present = False

    def is_available(self) -> bool:
        return self.present

    def is_built(self) -> bool:
        return True

    def has_primary_context(self, device: int) -> bool:
        return self.present


class _Module:
    """``torch.npu``."""

    @staticmethod
    def is_available() -> bool:
        return _Hooks.present

    is_initialized = is_available

    @staticmethod
    def device_count() -> int:
        return len(DEVICES)

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """Nothing: random numbers are the CPU's."""


_logs: list[Waits] = []
_library: list[torch.library.Library] = []


@contextmanager
def pretend_device() -> Iterator[None]:
    """In the block there are the devices ``npu:0`` and ``npu:1``."""
    if not _library:
        _setup_privateuseone_for_python_backend(NAME, _Module, hook=_Hooks())
        library = torch.library.Library("aten", "IMPL")
        library.impl("empty_strided", _empty_strided, "PrivateUse1")
        library.impl("empty.memory_format", _empty, "PrivateUse1")
        library.impl("_copy_from", _copy_from, "PrivateUse1")
        _library.append(library)  # kernels live as long as it does
    _Hooks.present = True
    try:
        # In this thread: torch starts one for each device that there is at the first gradient.
        with _Intercept(), torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        _Hooks.present = False


@contextmanager
def counted_waits() -> Iterator[Waits]:
    """Count the waits in the block."""
    waits = Waits()
    _logs.append(waits)
    try:
        yield waits
    finally:
        _logs.remove(waits)


def _run(operation: Any, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """Compute an operation on the CPU, as the device would or would not."""
    name = operation._schema.name.partition("::")[2]
    leaves, structure = tree_flatten((args, named))
    ours = [leaf for leaf in leaves if isinstance(leaf, PretendTensor)]
    goes_to = named.get("device")
    to_device = goes_to is not None and torch.device(goes_to).type == NAME
    if not ours and not to_device:
        return operation(*args, **named)
    others = [leaf for leaf in leaves if _is_plain(leaf)]
    _check_devices(name, ours, others)
    _note_waits(name, args, others, goes_to)
    args_there, named_there = tree_unflatten([_on_cpu(leaf) for leaf in leaves], structure)
    if to_device:
        named_there["device"] = torch.device("cpu")
    found = operation(*args_there, **named_there)
    if name == "copy_":
        return args[0]
    if name in _NUMBERS or (ours and goes_to is not None and not to_device):
        return found
    # What works in place gives its argument back.
    known = {id(tensor.on_cpu): tensor for tensor in ours}
    place = goes_to if to_device else ours[0].device

    def on_device(thing: Any) -> Any:
        if not _is_plain(thing):
            return thing
        return known[id(thing)] if id(thing) in known else PretendTensor(thing, place)

    return on_device(found) if isinstance(found, Tensor) else tree_map(on_device, found)


def _check_devices(name: str, ours: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Raise where CUDA would: it takes numbers of the host only as tensors without dimensions."""
    if not ours or name in _COPIES:
        return
    if len({tensor.device for tensor in ours}) > 1:
        raise RuntimeError(f"{name}: tensors on {DEVICES[0]} and on {DEVICES[1]}")
    if name in _TAKES_PLACES:
        return
    if shapes := [tuple(tensor.shape) for tensor in others if tensor.dim()]:
        raise RuntimeError(f"{name}: tensors on {NAME} and, with the shapes {shapes}, on the cpu")


def _note_waits(name: str, args: Sequence[Any], others: Sequence[Tensor], goes_to: Any) -> None:
    if name == "copy_":
        if others:
            _note("read" if _is_plain(args[0]) else "write")
    elif name == "_to_copy":
        to_host = goes_to is not None and torch.device(goes_to).type != NAME
        if to_host or others:
            _note("read" if to_host else "write")
    elif name in _TAKES_PLACES:
        places = [each for each in args[1] if each is not None]
        if any(each.dtype == torch.bool for each in places):
            _note("read")  # how many there are
        elif any(map(_is_plain, places)):
            _note("write")
    elif name in _READS:
        _note("read")


def _note(kind: str) -> None:
    place = _place()
    for waits in _logs:
        waits.counts[kind, place] += 1


def _place() -> str:
    """The innermost function of the package that is running."""
    frame = sys._getframe(2)
    while frame is not None:
        _, inside, file = frame.f_code.co_filename.partition(_PACKAGE)
        if inside:
            return f"{file}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def _is_plain(thing: object) -> bool:
    return isinstance(thing, Tensor) and not isinstance(thing, PretendTensor)


def _on_cpu(thing: Any) -> Any:
    return thing.on_cpu if isinstance(thing, PretendTensor) else thing


def _empty_strided(
    size: Any, stride: Any, *, dtype: Any = None, device: Any = NAME, **_: Any
) -> Tensor:
    return PretendTensor(torch.empty_strided(size, stride, dtype=dtype), device)


def _empty(size: Any, *, dtype: Any = None, device: Any = NAME, **_: Any) -> Tensor:
    return PretendTensor(torch.empty(size, dtype=dtype), device)


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    if isinstance(source, PretendTensor) != isinstance(target, PretendTensor):
        _note("write" if isinstance(target, PretendTensor) else "read")
    _on_cpu(target).copy_(_on_cpu(source))
    return target
