"""From the configuration's ``device`` to a device of torch."""

import os

import torch

from sphere_bench.errors import SphereBenchError
from sphere_bench.models.team import process_count

SHARDED = "sharded"


def resolve_device(device: str) -> torch.device:
    """The device of a configuration; ``auto`` is CUDA, else MPS, else the CPU.

    Raises:
        SphereBenchError: it is not usable here.
    """
    if device == SHARDED and process_count() > 1:
        raise SphereBenchError(
            "device=sharded is one process with all GPUs, and tensor parallelism is not there: "
            "start it without torchrun"
        )
    name = "cuda" if device == SHARDED else device
    if process_count() > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))  # a card for each process
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(name)
        torch.empty(0, device=resolved)
    # A torch without CUDA raises an AssertionError. An unknown name, or a device without kernels,
    # raises a RuntimeError.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise SphereBenchError(
            f"device={device} is not usable here ({reason}): try device=auto or device=cpu"
        ) from error
    return resolved
