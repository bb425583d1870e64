"""Several processes that share the work of one run, each with the model: ``torchrun``.

The first process makes the run: it alone solves, writes, locks and records. The others, its
helpers, wait until it gives out a piece of work. What is given out is cut into the same pieces
however many processes there are, so that a run's tables do not depend on their number.
"""

import io
import os
import pickle
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from sphere_bench.errors import SphereBenchError
from sphere_bench.signals import StopRequest, handled_by

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from sphere_bench.models.loading import LoadedModel

Piece = TypeVar("Piece")
Result = TypeVar("Result")

#: How long a helper waits for work, such as while key statistics are computed.
_PATIENCE = timedelta(days=7)
#: Seconds in which signals are one: torchrun passes on what the terminal has sent to all processes.
_ECHO = 1.0


def process_count() -> int:
    """How many processes ``torchrun`` has started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_helper() -> bool:
    """Whether this process waits for work of another one."""
    return int(os.environ.get("RANK", "0")) > 0


def stop_request() -> StopRequest:
    """What remembers that this process is asked to stop; a helper leaves the rest to the first."""
    return StopRequest(_ECHO if process_count() > 1 else 0.0, says=not is_helper())


@dataclass(frozen=True)
class Team:
    """The processes of a run.

    Attributes:
        size: how many there are.
        rank: of this one; 0 makes the run.
    """

    size: int = 1
    rank: int = 0

    @classmethod
    def join(cls, device: "torch.device") -> "Team":
        """The team that ``torchrun`` has started, or this process alone; joining again is free."""
        if process_count() == 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=device.type == "cpu", timeout=_PATIENCE)
        return cls(state.num_processes, state.process_index)

    def map(
        self,
        loaded: "LoadedModel",
        function: Callable[..., list[Result]],
        pieces: Sequence[Piece],
        *common: Any,
        **own: Any,
    ) -> list[Result]:
        """``function(loaded, pieces, *common)``, a result a piece, each process doing its share.

        Args:
            loaded: the model.
            function: of a module, so that helpers can find it; its result must be picklable.
            pieces: of the work.
            common: more arguments, for every process. A ``Budget`` among them is shared: after the
                work it has the smallest size that memory allowed in any process.
            own: more arguments for this process.

        Raises:
            SphereBenchError: a helper has died.
            Exception: what ``function`` raised in any process.
        """
        if self.size == 1:
            return function(loaded, pieces, *common, **own)
        with _helpers_alive():
            _broadcast((function, pieces, common))
            self._send_weights(loaded)
        return self._gather(loaded, function, pieces, common, own)

    def help(self, loaded: "LoadedModel") -> None:
        """Do pieces of work until the first process has no more.

        A signal to stop goes to all processes. The first one lets the step end, for which it needs
        the others, and then has no more work.
        """
        with handled_by(stop_request()), _helpers_alive():
            while (task := _broadcast(None)) is not None:
                function, pieces, common = task
                self._send_weights(loaded)
                self._gather(loaded, function, pieces, common, {})

    def dismiss(self) -> None:
        """Tell the helpers that there is no more work."""
        if self.size > 1:
            with suppress(RuntimeError):  # one that has died does not hear it
                _broadcast(None)

    def _send_weights(self, loaded: "LoadedModel") -> None:
        """Give the weights that were written since the last time to the helpers."""
        from torch import distributed

        for layer in _broadcast(sorted(loaded.layout.written)):
            weight = loaded.layout.projection(layer).weight
            distributed.broadcast(weight.data, 0)  # type: ignore[arg-type]
        loaded.layout.written.clear()

    def _gather(
        self,
        loaded: "LoadedModel",
        function: Callable[..., list[Result]],
        pieces: Sequence[Piece],
        common: Sequence[Any],
        own: dict[str, Any],
    ) -> list[Result]:
        """Every process's results; only the first one gets those of all."""
        from torch import distributed

        from sphere_bench.models.batching import Budget

        budgets = [each for each in common if isinstance(each, Budget)]
        mine: list[Result] | Exception
        try:
            mine = function(loaded, pieces[self.rank :: self.size], *common, **own)
        except Exception as error:  # the others wait for an answer in any case
            mine = error
        gathered: list[Any] = [None] * self.size
        with _helpers_alive():
            answer = pack((mine, [budget.size for budget in budgets]))
            distributed.all_gather_object(gathered, answer)
        if self.rank:
            return []
        shares, sizes = zip(*map(_unpack, gathered), strict=True)
        for budget, *allowed in zip(budgets, *sizes, strict=True):
            budget.size = min(allowed)
        for found in shares:
            if isinstance(found, Exception):
                raise found
        results: list[Any] = [None] * len(pieces)
        for rank, found in enumerate(shares):
            results[rank :: self.size] = found
        return results


def _broadcast(thing: Any) -> Any:
    """What the first process gives; the others give nothing."""
    from torch import distributed

    box = [pack(thing)]
    distributed.broadcast_object_list(box)
    return _unpack(box[0])


def pack(thing: Any) -> bytes:
    """Pickle what goes to another process, with its tensors on the CPU.

    The name of a card is not that of the same card there, and may be that of none.
    """
    packed = io.BytesIO()
    _Pickler(packed).dump(thing)
    return packed.getvalue()


def _unpack(packed: bytes) -> Any:
    """What :func:`pack` was given in a process of this run.

    Unpickling can run any code, and so can whoever is in the process group: torch's own collectives
    for objects unpickle what comes from there as well. Nothing from a file or a user is read here.
    """
    return pickle.loads(packed)


class _Pickler(pickle.Pickler):
    def reducer_override(self, thing: Any) -> Any:
        from torch import Tensor

        if isinstance(thing, Tensor) and thing.device.type != "cpu":
            return thing.detach().cpu().__reduce_ex__(pickle.DEFAULT_PROTOCOL)
        return NotImplemented


@contextmanager
def _helpers_alive() -> "Iterator[None]":
    try:
        yield
    except RuntimeError as error:
        raise SphereBenchError(
            "a process of this run has died: run the same command again to go on from the last "
            "checkpoint"
        ) from error
