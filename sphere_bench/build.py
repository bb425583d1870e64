"""From the configuration to the objects of a run: model, editor, probes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
from transformers.utils import logging as transformers_logging

from sphere_bench.config.schema import Config
from sphere_bench.config.target_arguments import make_object
from sphere_bench.data.corpus import Order
from sphere_bench.data.facts import overwritten_by
from sphere_bench.data.records import EditDataset
from sphere_bench.editing.contexts import fixed_contexts, generated_contexts
from sphere_bench.editing.editor import EditingSetup, Editor
from sphere_bench.editing.numerics import Numerics
from sphere_bench.editing.pipeline import Apply, EditingPipeline
from sphere_bench.editing.statistics.cache import CachedStatistics, cache_folder
from sphere_bench.editing.statistics.decompositions import CachedDecompositions
from sphere_bench.editing.statistics.given import GivenStatistics
from sphere_bench.editing.statistics.second_moments import token_count
from sphere_bench.editing.statistics.texts import OrdinaryText, ordinary_texts
from sphere_bench.editing.transforms import Sphere
from sphere_bench.editing.values.solver import ValueSettings
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.probe import ProbeSetup
from sphere_bench.evaluation.scopes import Scopes
from sphere_bench.models.batching import Budget
from sphere_bench.models.loading import LoadedModel, load_model
from sphere_bench.stream.measuring import Measurer, ScheduledProbe

_SPHERE = ("alpha", "eta", "basis", "normalize_rows", "rank_rule")


def build_model(config: Config) -> LoadedModel:
    """The unedited model on its device."""
    # The console is the run's own: its progress, its warnings, its summary.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    model = config.model
    return load_model(
        model.path,
        dtype=model.dtype,
        matmul_precision=model.matmul_precision,
        device=config.device,
        revision=model.revision,
        shape=model.shape,
        layers_module=model.modules.layers,
        projection=model.modules.projection,
        trust_remote_code=model.trust_remote_code,
    )


def build_setup(
    config: Config,
    loaded: LoadedModel,
    dataset: EditDataset,
    contexts: Sequence[str] | None = None,
    fingerprint: str | None = None,
) -> EditingSetup:
    """What the run gives to its editor.

    Args:
        contexts: those of a run that is resumed; otherwise the configuration's, or generated.
        fingerprint: of the model, if it is known.
    """
    if contexts is None:
        contexts = (
            generated_contexts(loaded, config.seed, config.editor.context_lengths)
            if config.values.contexts is None
            else fixed_contexts(config.values.contexts)
        )
    statistics = key_statistics(config, loaded, fingerprint)
    return EditingSetup(
        loaded=loaded,
        weights=EditedWeights(loaded.layout, config.editor.layers),
        values=ValueSettings(
            **asdict(config.editor.values),
            precision=dtype_named(config.values.precision),
        ),
        contexts=contexts,
        second_moments=statistics.second_moments,
        held_out_moments=statistics.held_out_moments,
        decompose=CachedDecompositions(cache_folder(config.statistics.cache) / "decompositions"),
        pool=dataset.pool,
        spare=dataset.spare,
        ordinary_windows=lambda: ordinary_windows(config, loaded),
        seed=config.seed,
        tokens_per_batch=Budget(config.values.tokens_per_batch),
    )


def build_editing(config: Config, setup: EditingSetup) -> EditingPipeline:
    """The editor with its transforms, its conditioner and SPHERE.

    Raises:
        SphereBenchError: what ``editor.method`` names is no editor or no transform.
    """
    return build_pipeline(config, make_object(config.editor.own, setup), setup)


def build_pipeline(config: Config, editor: Editor, setup: EditingSetup) -> EditingPipeline:
    """``editor`` with the transforms, the conditioner and SPHERE that the configuration names."""
    return EditingPipeline(
        editor,
        setup,
        **make_object(config.editor.shared),
        sphere=build_sphere(config),
        apply=cast(Apply, config.editor.apply),
        compensate=config.editor.compensate,
        numerics=Numerics(**asdict(config.numerics)),
    )


def build_sphere(config: Config) -> Sphere | None:
    """SPHERE's projection, where it is on."""
    sphere = asdict(config.sphere)
    return Sphere(**{key: sphere[key] for key in _SPHERE}) if config.sphere.enabled else None


def build_measurer(
    config: Config,
    loaded: LoadedModel,
    dataset: EditDataset,
    weights: EditedWeights,
    fingerprint: str | None = None,
) -> Measurer:
    """The probes, each with its cadence, and the scopes that they look at.

    Args:
        fingerprint: of the unedited model, if it is known.
    """
    setup = build_probe_setup(config, loaded, dataset, weights, fingerprint)
    probes = [
        _build_probe(name, node, setup) for name, node in config.probes.items() if node["every"]
    ]
    evaluation = config.evaluation
    scopes = Scopes(
        len(dataset.records),
        config.edits.batch_size,
        seen=evaluation.seen,
        first=evaluation.first,
        milestones=evaluation.milestones,
        seed=config.seed,
        overwritten_by=overwritten_by([record.request for record in dataset.records]),
        score_superseded=evaluation.superseded == "score",
    )
    return Measurer(probes, scopes, weights.layers)


def build_probe_setup(
    config: Config,
    loaded: LoadedModel,
    dataset: EditDataset,
    weights: EditedWeights,
    fingerprint: str | None = None,
) -> ProbeSetup:
    """What the run gives to its probes; see :func:`build_measurer`."""

    def texts(corpus: str, key: str) -> Iterable[str]:
        return ordinary_texts(loaded, corpus, key)

    return ProbeSetup(
        loaded=loaded,
        dataset=dataset,
        weights=weights,
        seed=config.seed,
        tokens_per_batch=Budget(config.evaluation.tokens_per_batch),
        texts=texts,
        cache=cache_folder(config.statistics.cache),
        fingerprint=fingerprint,
    )


def _build_probe(name: str, node: Mapping[str, Any], setup: ProbeSetup) -> ScheduledProbe:
    own = {key: value for key, value in node.items() if key != "every"}
    return ScheduledProbe(name, make_object(own, setup), node["every"])


def key_statistics(
    config: Config, loaded: LoadedModel, fingerprint: str | None = None
) -> CachedStatistics | GivenStatistics:
    """Second moments of the edited layers' keys, which are read or computed when asked for."""
    statistics, editor = config.statistics, config.editor
    text = ordinary_text(config, loaded)
    if statistics.path is not None:
        return GivenStatistics(loaded, editor.layers, statistics.path, text.tokens)
    return CachedStatistics(
        loaded,
        editor.layers,
        text,
        statistics.cache,
        held_out=token_count(loaded, editor.layers, None, editor.held_out_per_dimension),
        tokens_per_batch=statistics.tokens_per_batch,
        precision=dtype_named(statistics.precision),
        fingerprint=fingerprint,
    )


def ordinary_text(config: Config, loaded: LoadedModel) -> OrdinaryText:
    """What is read of the corpus of key statistics."""
    statistics, editor = config.statistics, config.editor
    loaded.layout.check_layers(editor.layers)
    return OrdinaryText(
        statistics.corpus,
        token_count(loaded, editor.layers, statistics.tokens, editor.tokens_per_dimension),
        cast(Order, statistics.order),
        statistics.tokens_per_text,
        statistics.max_length,
    )


def ordinary_windows(config: Config, loaded: LoadedModel) -> Iterator[list[int]]:
    """The tokens of the ordinary text, in rows.

    Raises:
        SphereBenchError: key statistics are given, so that no text is read.
    """
    if config.statistics.path is not None:
        raise SphereBenchError(
            f"statistics.path={config.statistics.path}: editor={config.editor.name} reads ordinary "
            "text, of which given key statistics hold none: leave statistics.path out"
        )
    return ordinary_text(config, loaded).windows(loaded)


def given_moments(config: Config, loaded: LoadedModel) -> dict[str, str]:
    """SHA-256 of the second moments that exist already, by layer; empty where they are computed."""
    statistics = key_statistics(config, loaded)
    if not isinstance(statistics, GivenStatistics):
        return {}
    return {str(layer): digest for layer, digest in statistics.fingerprint().items()}


def dtype_named(name: str | None) -> torch.dtype | None:
    """The torch dtype that a configuration names; null names none.

    Raises:
        SphereBenchError: there is no such dtype.
    """
    if name is None:
        return None
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise SphereBenchError(f"{name} is no dtype of torch")
    return dtype
