"""How a batch is edited: editor, contexts, key statistics, SPHERE, numbers that are not finite."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import II

from sphere_bench.config.schema.checks import check_layers, check_name
from sphere_bench.config.schema.model import DTYPES, ValueSolverConfig
from sphere_bench.errors import (
    SphereBenchError,
    check_above,
    check_at_least,
    check_between,
    check_choice,
)

# What transforms are applied to, and when.
APPLY = ("in_loop", "after", "deployed")
# Keys of editor.method that belong to the pipeline around the editor.
SHARED = ("transforms", "conditioner", "continue_from")


@dataclass
class EditorSphereConfig:
    """What SPHERE's paper and its published code use with this editor.

    Attributes:
        alpha: SPHERE's strength with this editor.
        apply: ``editor.apply`` with ``sphere=paper``.
        published_apply: ``editor.apply`` with ``sphere=published-code`` and ``sphere=off``.
    """

    alpha: float
    apply: str
    published_apply: str

    def __post_init__(self) -> None:
        check_between("editor.sphere.alpha", self.alpha, 0, 1)
        check_choice("editor.sphere.apply", self.apply, APPLY)
        check_choice("editor.sphere.published_apply", self.published_apply, APPLY)


@dataclass
class EditorConfig:
    """An editor: its class, and what it shares with all others.

    Attributes:
        name: in the run's name and in the tables.
        layers: the decoder layers whose down projections are edited.
        tokens_per_dimension: tokens of ordinary text for every dimension of a key, where
            ``statistics.tokens`` is null. The files of editors with a null space say 100.
        held_out_per_dimension: tokens of other text for every dimension of a key, to see how much
            of its energy lies in the null space; 0 leaves that out. ``alphaedit``,
            ``betaedit`` and ``nas`` have 10.
        context_lengths: of the generated context prefixes: pairs of how many tokens one has, its
            opening word and a BOS among them, and how many there are of this length.
        apply: when updates are transformed: ``in_loop``, before the next layer is measured;
            ``after``, when the updates of all layers are found; ``deployed`` transforms, behind
            the conditioner, the whole change since the pretrained weights instead.
        compensate: the next batch makes up for what the transforms and the conditioner changed in
            what was deployed. For editors that solve by least squares.
        method: the editor's class (``_target_``) with its own keys, and the keys that every editor
            has: ``transforms``, ``conditioner`` and ``continue_from``.
    """

    name: str
    layers: list[int]
    apply: str
    sphere: EditorSphereConfig
    method: dict[str, Any]
    # Runs recorded before there were these keys can be read.
    compensate: bool = False
    tokens_per_dimension: int = 10
    held_out_per_dimension: int = 0
    values: ValueSolverConfig = field(default=II("model.values"))
    context_lengths: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_name("editor.name", self.name)
        check_layers("editor.layers", self.layers)
        self.values.check("editor.values")
        for pair in self.context_lengths:
            if len(pair) != 2 or min(pair) < 1:
                raise SphereBenchError(
                    f"editor.context_lengths={self.context_lengths}: must be pairs of how many "
                    "tokens a context has and how many contexts there are of this length"
                )
        check_choice("editor.apply", self.apply, APPLY)
        check_at_least("editor.tokens_per_dimension", self.tokens_per_dimension, 1)
        check_at_least("editor.held_out_per_dimension", self.held_out_per_dimension, 0)
        if "_target_" not in self.method:
            raise SphereBenchError("editor.method._target_ is missing: name the editor's class")

    @property
    def own(self) -> dict[str, Any]:
        """The editor's node: ``_target_`` and its own arguments."""
        return {key: value for key, value in self.method.items() if key not in SHARED}

    @property
    def shared(self) -> dict[str, Any]:
        """Those arguments of ``method`` that every editor has."""
        return {key: value for key, value in self.method.items() if key in SHARED}


@dataclass
class ContextsConfig:
    """Context prefixes for target values and keys, and how the forwards are run.

    Attributes:
        contexts: null generates the prefixes once, with the unedited model; a list fixes them, each
            with one ``{}`` for the prompt. The bare prompt is always among them.
        context_tokens: tokens of a generated prefix, its opening word and a BOS among them; in
            ``editor.context_lengths``, unless the editor has lengths of its own.
        tokens_per_batch: tokens in one forward; halved when memory runs out.
        precision: dtype of the layers that target values are optimised through; null is
            ``model.dtype``. ``bfloat16`` is faster where the processor has it. What is optimised
            stays float32, and everything else keeps ``model.dtype``.
    """

    contexts: list[str] | None
    context_tokens: int
    tokens_per_batch: int
    precision: str | None

    def __post_init__(self) -> None:
        check_choice("values.precision", self.precision, (*DTYPES, None))
        for context in self.contexts or []:
            if context.count("{}") != 1:
                raise SphereBenchError(
                    f"values.contexts: {context!r} must hold exactly one {{}} for the prompt"
                )
        check_at_least("values.context_tokens", self.context_tokens, 1)
        check_at_least("values.tokens_per_batch", self.tokens_per_batch, 1)


@dataclass
class StatisticsConfig:
    """Text for the second moments of keys, and how the forwards over it are run; or their files.

    Attributes:
        corpus: a .txt, .md, .jsonl or .parquet file; a dataset on the hub as ``name``,
            ``name:config`` or ``name:config@revision``; ``bundled``, the tiny GPT-2's world; or
            ``generated``, text that the model writes itself.
        tokens: how many tokens of it; null is ``editor.tokens_per_dimension`` times the width of
            the keys.
        order: ``random`` reads the texts in an order that is drawn once and for all; of a dataset
            on the hub, its shards and a buffer of texts are shuffled. ``file`` reads them as they
            stand.
        tokens_per_text: at most so many tokens of one text, from its beginning; null is no limit.
        max_length: tokens in a window; a longer text is cut.
        tokens_per_batch: padded tokens in one forward; halved when memory runs out.
        cache: folder of finished statistics, and of what the unedited model answers in
            ``probes.ability``; null is ``statistics`` in ``$SPHERE_BENCH_CACHE``, or in
            ``~/.cache/sphere-bench``.
        precision: dtype of the forwards; null is ``model.dtype``.
        path: a file or a folder with second moments that exist already; then no text is read. Those
            that ROME, MEMIT and AlphaEdit publish are ``.npz`` files, one for each layer, with the
            name of its module in the file's name; ours are the files in ``cache``.
    """

    corpus: str
    tokens: int | None
    max_length: int
    tokens_per_batch: int
    cache: str | None
    # Runs recorded before there were these keys can be read.
    precision: str | None = None
    order: str = "file"
    tokens_per_text: int | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None:
            check_at_least("statistics.tokens", self.tokens, 1)
        check_at_least("statistics.max_length", self.max_length, 1)
        check_at_least("statistics.tokens_per_batch", self.tokens_per_batch, 1)
        check_choice("statistics.precision", self.precision, (*DTYPES, None))
        check_choice("statistics.order", self.order, ("random", "file"))
        if self.tokens_per_text is not None:
            check_at_least("statistics.tokens_per_text", self.tokens_per_text, 1)


@dataclass
class SphereConfig:
    """SPHERE's projection of the updates, dW (I - alpha U U^T).

    Attributes:
        name: in the run's name and in the tables.
        enabled: whether there is a projection at all; ``sphere=off`` turns it off.
        alpha: suppression strength, from 0 (no effect) to 1 (hard projection).
        eta: share of the eigenvalues' sum that the principal directions U reach.
        basis: ``pretrained`` takes U from the unedited weight, ``current`` from the weight as it is
            at each update.
        normalize_rows: divide the weight's rows by their norms before U is taken.
        rank_rule: ``paper`` takes the smallest number of directions that reaches eta,
            ``published-code`` one more than the number of directions up to a share of eta.
    """

    name: str
    enabled: bool
    alpha: float
    eta: float
    basis: str
    normalize_rows: bool
    rank_rule: str

    def __post_init__(self) -> None:
        check_name("sphere.name", self.name)
        check_between("sphere.alpha", self.alpha, 0, 1)
        check_above("sphere.eta", self.eta, 0)
        check_between("sphere.eta", self.eta, 0, 1)
        check_choice("sphere.basis", self.basis, ("pretrained", "current"))
        check_choice("sphere.rank_rule", self.rank_rule, ("paper", "published-code"))


@dataclass
class NumericsConfig:
    """What to do about a batch with numbers that are not finite, or with too large an update.

    Attributes:
        on_nonfinite: ``stop`` ends the run, ``skip`` leaves the batch out, ``record`` writes the
            numbers as they are.
        largest_update: norm of one update of a layer, in norms of the weight that it changes, above
            which it counts as not finite; null is no bound.
    """

    on_nonfinite: str
    largest_update: float | None

    def __post_init__(self) -> None:
        check_choice("numerics.on_nonfinite", self.on_nonfinite, ("stop", "skip", "record"))
        if self.largest_update is not None:
            check_above("numerics.largest_update", self.largest_update, 0)
