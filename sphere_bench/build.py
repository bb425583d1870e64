"""From the configuration to the objects of a run: model, editor, probes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from sphere_bench.config.schema import Config
from sphere_bench.config.target_arguments import make_object
from sphere_bench.data.records import EditDataset
from sphere_bench.editing.batch import Apply
from sphere_bench.editing.contexts import fixed_contexts, generated_contexts
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.numerics import Numerics
from sphere_bench.editing.pipeline import EditingPipeline
from sphere_bench.editing.statistics.cache import load_or_compute
from sphere_bench.editing.statistics.second_moments import ordinary_texts
from sphere_bench.editing.transforms import Sphere
from sphere_bench.editing.values.solver import ValueSettings
from sphere_bench.editing.weights import EditedWeights
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.probe import ProbeSetup
from sphere_bench.evaluation.scopes import Scopes
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
) -> EditingSetup:
    """What the run gives to its editor.

    Args:
        contexts: those of a run that is resumed; otherwise the configuration's, or generated.
    """
    if contexts is None:
        contexts = (
            generated_contexts(loaded, config.seed, config.values.context_tokens)
            if config.values.contexts is None
            else fixed_contexts(config.values.contexts)
        )
    return EditingSetup(
        loaded=loaded,
        weights=EditedWeights(loaded.layout, config.editor.layers),
        values=ValueSettings(
            **asdict(config.model.values),
            precision=dtype_named(config.values.precision),
        ),
        contexts=contexts,
        second_moments=lambda: key_statistics(config, loaded),
        pool=dataset.pool,
        seed=config.seed,
        tokens_per_batch=config.values.tokens_per_batch,
    )


def build_editing(config: Config, setup: EditingSetup) -> EditingPipeline:
    """The editor with its transforms, its conditioner and SPHERE.

    Raises:
        SphereBenchError: what ``editor.method`` names is no editor or no transform.
    """
    return EditingPipeline(
        make_object(config.editor.own, setup),
        setup,
        **make_object(config.editor.shared),
        sphere=build_sphere(config),
        apply=cast(Apply, config.editor.apply),
        numerics=Numerics(**asdict(config.numerics)),
    )


def build_sphere(config: Config) -> Sphere | None:
    """SPHERE's projection, where it is on."""
    sphere = asdict(config.sphere)
    return Sphere(**{key: sphere[key] for key in _SPHERE}) if config.sphere.enabled else None


def build_measurer(
    config: Config, loaded: LoadedModel, dataset: EditDataset, weights: EditedWeights
) -> Measurer:
    """The probes, each with its cadence, and the scopes that they look at."""

    def texts(corpus: str, key: str) -> Iterable[str]:
        return ordinary_texts(loaded, corpus, key)

    setup = ProbeSetup(
        loaded=loaded,
        dataset=dataset,
        weights=weights,
        seed=config.seed,
        tokens_per_batch=config.evaluation.tokens_per_batch,
        texts=texts,
    )
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
    )
    return Measurer(probes, scopes, weights.layers)


def _build_probe(name: str, node: Mapping[str, Any], setup: ProbeSetup) -> ScheduledProbe:
    own = {key: value for key, value in node.items() if key != "every"}
    return ScheduledProbe(name, make_object(own, setup), node["every"])


def key_statistics(config: Config, loaded: LoadedModel) -> Mapping[int, Tensor]:
    """Second moments of the edited layers' keys, from the cache or computed into it."""
    statistics = config.statistics
    return load_or_compute(
        loaded,
        config.editor.layers,
        statistics.corpus,
        statistics.tokens,
        statistics.cache,
        max_length=statistics.max_length,
        tokens_per_batch=statistics.tokens_per_batch,
        precision=dtype_named(statistics.precision),
    )


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
