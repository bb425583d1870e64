"""The probe's protocol: something measured after a step."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sphere_bench.data.records import EditDataset
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.evaluation.columns import Declared
from sphere_bench.models.batching import Budget
from sphere_bench.models.loading import LoadedModel

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ProbeSetup:
    """What a run gives to each of its probes.

    Attributes:
        loaded: the model under edit, with its tokenizer.
        dataset: the run's records, in the order in which they are edited.
        weights: the weights under edit, as pretrained and as they are now.
        seed: the run's.
        tokens_per_batch: padded tokens in one forward, see ``models.batching``.
        texts: a corpus, and the configuration's key that names it, to its texts.
        cache: a folder for what runs of one model need not measure again; ``None`` is none.
        fingerprint: the unedited model's, ``None`` where it is not known.
    """

    loaded: LoadedModel
    dataset: EditDataset
    weights: EditedWeights
    seed: int
    tokens_per_batch: Budget
    texts: Callable[[str, str], Iterable[str]]
    cache: Path | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class Moment:
    """When a probe has its turn.

    Attributes:
        step: batches edited so far; 0 is the unedited model.
        edits: records edited so far.
        batch_size: records in a batch; the last one may be smaller.
        scopes: scope to the indices of the records that count in it, see ``evaluation.scopes``: a
            superseded record is in none of them.
    """

    step: int
    edits: int
    batch_size: int
    scopes: Mapping[str, Sequence[int]]

    def edited_at(self, index: int) -> int:
        """The step at which the record at ``index`` is edited."""
        return index // self.batch_size + 1


@dataclass(frozen=True)
class Findings:
    """What a probe found; every key is a column that it declares.

    Attributes:
        step: the step's own values.
        scopes: scope to its values.
        layers: edited layer to its values.
        tables: a table of the probe's own to its rows, ``step`` and ``edits`` left out.
    """

    step: Row = field(default_factory=dict)
    scopes: Mapping[str, Row] = field(default_factory=dict)
    layers: Mapping[int, Row] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)


class Probe(Protocol):
    """Something measured after a step.

    ``instantiate(node, setup)`` makes it from the configuration: its first argument is the
    :class:`ProbeSetup`, the others are its own keys. How often it has its turn is the node's
    ``every``, which the harness takes for itself.

    It may also have ``stage`` (a text: its seconds are added to ``seconds_<stage>``; by default
    the stage is named like the probe), and ``state_dict()`` with ``load_state_dict(state)``: what
    they carry is part of every checkpoint, tensors in dicts of dicts. It must leave the model and
    the random state of the process as they are.
    """

    @property
    def declares(self) -> Declared:
        """The columns and tables that it fills."""

    def measure(self, moment: Moment) -> Findings:
        """Look at the model as it is now."""
