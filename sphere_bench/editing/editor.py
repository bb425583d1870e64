"""What an editor is, and what a run gives to it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.batch import Batch
from sphere_bench.editing.solvers import Decompose
from sphere_bench.editing.values.solver import ValueSettings
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.models.batching import Budget
from sphere_bench.models.loading import LoadedModel


class Editor(Protocol):
    """Writes batches of edits into a model, one after another.

    ``instantiate(node, setup)`` makes it from the configuration: its first argument is the
    :class:`EditingSetup`, the others are its own keys.

    What it remembers between batches, apart from the weights, it gives as ``state_dict()`` and
    takes back with ``load_state_dict(state)``: nested dicts of tensors, with strings without "/"
    as keys. The tensors that it gets back may be on the CPU, and empty dicts are left out. An
    editor that remembers nothing has neither method.

    What it finds out when it is made, it may give as ``facts()``: plain values by name, recorded in
    ``provenance.json``.
    """

    def edit(self, batch: Batch) -> None:
        """Edit the model as earlier batches left it.

        Every change goes through ``batch.write(layer, update)``.
        """


@dataclass(frozen=True)
class EditingSetup:
    """What a run gives to its editor.

    Attributes:
        loaded: the model.
        weights: the weights under edit.
        values: settings of the value solver.
        contexts: templates with one ``{}``, the bare prompt first.
        second_moments: returns each edited layer's C [d_in, d_in]; computed or read when called.
        seed: the run's.
        pool: n valid requests of the whole dataset, drawn with the run's seed, whichever of them
            the run edits; fewer if there are fewer.
        spare: n valid requests of the dataset that the run does not edit, the same however long it
            is; fewer if there are fewer.
        tokens_per_batch: tokens in one forward, for ``models.batching.backing_off``.
        ordinary_windows: returns the tokens of the text that ``second_moments`` are of, in rows of
            one text each.
        held_out_moments: returns the same as ``second_moments`` over text that those are not of;
            empty where there is no such text.
        decompose: finds eigenvalues and eigenvectors of C, and keeps them for later runs.
    """

    loaded: LoadedModel
    weights: EditedWeights
    values: ValueSettings
    contexts: Sequence[str]
    second_moments: Callable[[], Mapping[int, Tensor]]
    seed: int
    pool: Callable[[int], Sequence[EditRequest]]
    tokens_per_batch: Budget
    spare: Callable[[int], Sequence[EditRequest]] = lambda count: ()
    ordinary_windows: Callable[[], Iterable[list[int]]] = tuple
    held_out_moments: Callable[[], Mapping[int, Tensor]] = dict
    decompose: Decompose = torch.linalg.eigh
