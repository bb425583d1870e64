"""`sphere-bench run`: build the objects of a run and hand them to the runner."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sphere_bench import ownership, provenance
from sphere_bench.composition import identity, write_config
from sphere_bench.entry import hydra_main
from sphere_bench.errors import SphereBenchError
from sphere_bench.schema import Config
from sphere_bench.signatures import check_arguments
from sphere_bench.tracking import check_trackers, open_trackers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sphere_bench.data.records import EditDataset
    from sphere_bench.editing.pipeline import EditingSetup
    from sphere_bench.evaluation.perplexity import Perplexity
    from sphere_bench.models.loading import LoadedModel

logger = logging.getLogger(__name__)

SPHERE = ("alpha", "eta", "basis", "normalize_rows", "rank_rule")


def main(arguments: Sequence[str]) -> int:
    """The verb: one run, or with --multirun one after another."""
    return hydra_main(build_and_run, "run", arguments)


def build_and_run(config: Config) -> None:
    """Edit the model of a validated configuration, batch by batch, into its run's folder.

    What needs no model comes first, so that its mistakes are told before anything slow.
    """
    folder = config.run.folder
    ownership.check_location(config.run.root, folder)
    check_arguments(config.editor.method, "editor.method")
    dataset = build_dataset(config)
    _check_checkpoint_steps(config, dataset)
    check_trackers(config.trackers)
    facts = {"config": asdict(config), "dataset_fingerprint": dataset.fingerprint}

    from sphere_bench.summary import summarize_run

    if not _has_ended(config) or ownership.differences(folder, facts):
        with ownership.locked(folder):
            _other_run(config, {**facts, **provenance.versions()})
            _edit(config, dataset)
    print(summarize_run(folder, dataset.headline))


def _other_run(config: Config, facts: Mapping[str, Any]) -> str:
    """What tells the run that the folder holds from one with these ``facts``; empty if nothing.

    Raises:
        SphereBenchError: something does, and that run is not to be discarded.
    """
    folder = config.run.folder
    found = "; ".join(ownership.differences(folder, facts))
    if found and config.run.on_mismatch == "error":
        raise SphereBenchError(
            f"{folder} holds another run ({found}): choose another run.name, or discard that run "
            "with run.on_mismatch=restart"
        )
    return found


def _has_ended(config: Config) -> bool:
    """Whether nothing is left to do; other thresholds of collapse may leave something."""
    from sphere_bench.collapse import Collapse
    from sphere_bench.recording import read_progress

    folder = config.run.folder
    progress = read_progress(folder)
    if progress is None or progress.state != "collapsed":
        return progress is not None and progress.state == "done"
    return Collapse(**asdict(config.collapse)).reached_in(folder, progress.step)


def _edit(config: Config, dataset: EditDataset) -> None:
    """Make the run or what is left of it; its folder stays as it is until everything is loaded."""
    from hydra.utils import instantiate

    from sphere_bench.checkpoints import Checkpoints
    from sphere_bench.collapse import Collapse
    from sphere_bench.editing.prompts import check_prompts_fit
    from sphere_bench.evaluation.protocol import Evaluator
    from sphere_bench.measuring import StepMeasurer
    from sphere_bench.models.fingerprint import model_fingerprint
    from sphere_bench.recording import Recorder
    from sphere_bench.runner import RunSettings, SequentialRun

    folder = config.run.folder
    loaded = build_model(config)
    facts = provenance.collect(
        config=asdict(config),
        device=str(loaded.device),
        model_fingerprint=model_fingerprint(loaded),
        dataset_fingerprint=dataset.fingerprint,
    )
    other = _other_run(config, facts)
    resumed = ownership.is_begun(folder) and not other
    contexts = provenance.read(folder)["contexts"] if resumed else None
    setup = build_setup(config, loaded, dataset, contexts)
    check_prompts_fit(loaded, dataset.records, setup.contexts)
    try:
        editor = instantiate(config.editor.method)(setup)
    except TypeError as error:
        raise SphereBenchError(f"editor.method does not fit its class: {error}") from error
    perplexity = build_perplexity(config, loaded)
    evaluator = Evaluator(loaded, dataset, seed=config.seed, **asdict(config.evaluation))
    if other:
        logger.warning("%s holds another run (%s): starting anew", folder, other)
        ownership.discard(folder)
    facts["config_hash"] = provenance.config_hash(identity(asdict(config)))
    facts["contexts"] = list(setup.contexts)
    if resumed:
        provenance.record_resumed(folder, facts)
    else:
        write_config(config)
        provenance.record(folder, facts)
    settings = RunSettings(
        batch_size=config.edits.batch_size,
        checkpoint_every=config.checkpoint.every,
        run_hash=ownership.run_hash(facts),
        collapse=Collapse(**asdict(config.collapse)),
    )
    checkpoints = Checkpoints(
        folder / "checkpoints", config.checkpoint.keep, config.checkpoint.steps
    )
    with open_trackers(config.trackers, folder, identity(asdict(config))) as track:
        SequentialRun(
            dataset=dataset,
            weights=setup.weights,
            editor=editor,
            measurer=StepMeasurer(
                setup.weights,
                evaluator,
                energy_exponent=config.energy.exponent,
                energy_eps=config.energy.eps,
                perplexity=perplexity,
            ),
            recorder=Recorder(folder),
            checkpoints=checkpoints,
            settings=settings,
            track=track,
        ).run()


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
    from sphere_bench.editing.contexts import fixed_contexts, generated_contexts
    from sphere_bench.editing.numerics import Numerics
    from sphere_bench.editing.pipeline import EditingSetup
    from sphere_bench.editing.transforms import Sphere
    from sphere_bench.editing.values import ValueSettings
    from sphere_bench.editing.weights import EditedWeights

    if contexts is None:
        contexts = (
            generated_contexts(loaded, config.seed, config.values.context_tokens)
            if config.values.contexts is None
            else fixed_contexts(config.values.contexts)
        )
    sphere = asdict(config.sphere)
    return EditingSetup(
        loaded=loaded,
        weights=EditedWeights(loaded.layout, config.editor.layers),
        values=ValueSettings(
            **asdict(config.model.values),
            precision=dtype_named(config.values.precision),
        ),
        contexts=contexts,
        second_moments=lambda: key_statistics(config, loaded),
        stream=[record.request for record in dataset.records],
        sphere=Sphere(**{key: sphere[key] for key in SPHERE}) if sphere["enabled"] else None,
        apply=sphere["apply"],
        tokens_per_batch=config.values.tokens_per_batch,
        numerics=Numerics(**asdict(config.numerics)),
    )


def build_dataset(config: Config) -> EditDataset:
    """The run's records.

    Raises:
        SphereBenchError: they cannot be read, or are fewer than a batch.
    """
    from hydra.utils import instantiate

    dataset: EditDataset = instantiate(
        asdict(config.dataset),
        total=config.edits.total,
        start=config.edits.start,
        shuffle=config.edits.shuffle,
        seed=config.seed,
    )
    if config.edits.batch_size > len(dataset.records):
        raise SphereBenchError(
            f"edits.batch_size={config.edits.batch_size} is larger than the dataset, which has "
            f"{len(dataset.records)} records: lower it"
        )
    return dataset


def _check_checkpoint_steps(config: Config, dataset: EditDataset) -> None:
    last = math.ceil(len(dataset.records) / config.edits.batch_size)
    if any(step > last for step in config.checkpoint.steps):
        raise SphereBenchError(f"checkpoint.steps={config.checkpoint.steps}: the run has {last}")


def build_model(config: Config) -> LoadedModel:
    """The unedited model on its device."""
    from transformers.utils import logging

    from sphere_bench.models.loading import load_model

    # The console is the run's own: its progress, its warnings, its summary.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
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


def build_perplexity(config: Config, loaded: LoadedModel) -> Perplexity | None:
    """The probe of the model's perplexity, where one is asked for."""
    from sphere_bench.editing.statistics import ordinary_texts
    from sphere_bench.evaluation.perplexity import Perplexity

    if not config.perplexity.tokens:
        return None
    texts = ordinary_texts(loaded, config.perplexity.corpus, "perplexity.corpus")
    return Perplexity(loaded, texts, config.perplexity.tokens, config.evaluation.tokens_per_batch)


def key_statistics(config: Config, loaded: LoadedModel) -> Mapping[int, Tensor]:
    """Second moments of the edited layers' keys, from the cache or computed into it."""
    from sphere_bench.editing.statistics_cache import load_or_compute

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
    """The torch dtype that a configuration names; null names none."""
    import torch

    return getattr(torch, name) if name else None
