"""`sphere-bench run`: make a run, or what is left of it."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sphere_bench.commands.hydra_entry import hydra_main
from sphere_bench.config.composition import check_unedited, write_config
from sphere_bench.config.identity import config_hash, corpora, foreign_sources, identity
from sphere_bench.config.schema import TRACKERS, Config
from sphere_bench.config.target_arguments import check_arguments, check_editor
from sphere_bench.data.configured import build_dataset, with_total
from sphere_bench.data.quality import warnings_of
from sphere_bench.data.records import EditDataset
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.collapse import Collapse
from sphere_bench.files import file_stamps
from sphere_bench.models.team import Team, is_helper, process_count
from sphere_bench.run_folder import provenance
from sphere_bench.run_folder.continuation import Continuation
from sphere_bench.run_folder.folder import FolderInUseError, RunFolder
from sphere_bench.run_folder.identity import run_hash
from sphere_bench.run_folder.summary import check_objective, objective, summarize
from sphere_bench.signals import Abandoned
from sphere_bench.stream.early_stopping import EarlyStopping
from sphere_bench.stream.trackers import check_trackers, open_trackers

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """The verb: one run, or with --multirun one after another."""
    if process_count() == 1:
        return hydra_main(run, "run", arguments)
    if {"-m", "--multirun"} & set(arguments):
        raise SphereBenchError(
            "torchrun and --multirun do not go together: start each run with a torchrun of its own"
        )
    if is_helper():
        # The first process has the run's folder.
        return hydra_main(help_with, "run", arguments, has_folder=False)
    return hydra_main(run_with_helpers, "run", arguments)


def run_with_helpers(config: Config) -> float | None:
    """:func:`run`, the other processes being told when there is no more work."""
    from sphere_bench.models.devices import resolve_device

    team = Team.join(resolve_device(config.device))
    try:
        found = run(config)
    except Abandoned:  # amid shared work, helpers do not hear it: they end as this process does
        raise
    except BaseException:
        team.dismiss()
        raise
    team.dismiss()
    return found


def help_with(config: Config) -> None:
    """Do pieces of the work of a run that another process makes."""
    from sphere_bench.build import build_model

    loaded = build_model(config)
    loaded.team.help(loaded)


def run(config: Config) -> float | None:
    """Edit the model of a validated configuration, batch by batch, into its run's folder.

    What needs no model comes first, so that its errors are reported before anything slow.

    Returns:
        What a sweeper gets: ``objective.metric`` of ``objective.scope`` at the last step; ``None``
        where another process has the run and ``run.on_locked`` is ``skip``.
    """
    folder = RunFolder(config.run.folder)
    folder.check_location(config.run.root)
    check_targets(config)
    check_trackers(config.trackers)
    found = continuation(config, folder)
    if found.resumes and folder.config_file.exists():
        check_unedited(folder.config_file, folder.provenance()["config"])
    earlier, made = folder.progress(), 0
    if not has_ended(config, found):
        try:
            with folder.locked():
                made = make(config, found)
        except FolderInUseError as error:
            if config.run.on_locked == "error":
                raise
            print(f"skipped: {error}")
            return None
        except Exception as error:
            # Here for the log file: the command line reports it as well.
            logger.info("ended by %s: %s", type(error).__name__, error)
            raise
    if earlier is not None and not made:
        print(f"already done on {earlier.updated_at}, nothing computed")
    print(summarize(folder))
    check_objective(config.objective.metric, folder.provenance()["columns"])
    return objective(folder, config.objective.metric, config.objective.scope)


def check_targets(config: Config) -> None:
    """Check the arguments of every class that the configuration names.

    Raises:
        SphereBenchError: an argument is unknown, missing or of another type.
    """
    check_editor(config.editor.own, config.editor.shared, "editor.method")
    check_arguments(config.dataset.loader, "dataset.loader")
    for name, node in config.probes.items():
        own = {key: value for key, value in node.items() if key != "every"}
        check_arguments(own, f"probes.{name}", given=1)


def continuation(config: Config, folder: RunFolder) -> Continuation:
    """What the folder holds beside what the configuration asks for."""

    def dataset_of(records: int | None) -> EditDataset:
        return build_dataset(config if records is None else with_total(config, records))

    content = asdict(config)
    facts = {
        "config": content,
        "corpora": corpora(content),
        "sources": foreign_sources(content),
    }
    restart = config.run.on_mismatch == "restart"
    return Continuation(folder, facts, dataset_of, restart=restart)


def has_ended(config: Config, found: Continuation) -> bool:
    """Whether nothing is left to do; other thresholds of collapse may leave something."""
    progress = found.folder.progress()
    if progress is None or not found.is_intact(stamps(config)):
        return False
    if progress.state == "collapsed":
        thresholds = EarlyStopping(Collapse(**asdict(config.collapse)))
        return thresholds.resume(found.folder, progress.step)
    return found.is_complete


def stamps(config: Config) -> dict[str, Any]:
    """Sizes and times of the files whose contents are known once the model is loaded."""
    given = config.statistics.path
    return {
        "model_files": file_stamps(config.model.path),
        "statistics_files": None if given is None else file_stamps(given, recursive=False),
    }


def make(config: Config, found: Continuation) -> int:
    """Make the run or what is left of it; its folder stays as it is until everything is loaded.

    Returns:
        How many steps were made.
    """
    # Torch and transformers take seconds to import: only a run that has work needs them.
    from sphere_bench import build
    from sphere_bench.editing.prompts import check_prompts_fit
    from sphere_bench.editing.untouched import UntouchedParameters
    from sphere_bench.models.fingerprint import model_fingerprint
    from sphere_bench.run_folder.checkpoints import Checkpoints
    from sphere_bench.run_folder.tables import Recorder
    from sphere_bench.stream.runner import RunSettings, SequentialRun

    # Another process may have been here before the folder was locked.
    found.compare({**found.facts, **provenance.versions()})
    folder, dataset = found.folder, found.dataset
    for warning in warnings_of(dataset, config.edits.batch_size, config.evaluation.superseded):
        logger.warning("%s", warning)
    loaded = build.build_model(config)
    fingerprint = model_fingerprint(loaded)
    facts = {
        **provenance.collect(config=asdict(config), device=str(loaded.device)),
        "model_fingerprint": fingerprint,
        "second_moments": build.given_moments(config, loaded),
        **stamps(config),
        "dataset_fingerprint": dataset.fingerprint(),
        "records": len(dataset.records),
        "corpora": corpora(asdict(config)),
        "sources": foreign_sources(asdict(config)),
        "headline": dataset.headline,
        "kinds": [asdict(kind) for kind in dataset.kinds],
    }
    found.compare(facts)
    contexts = folder.provenance()["contexts"] if found.resumes else None
    setup = build.build_setup(config, loaded, dataset, contexts, fingerprint)
    check_prompts_fit(loaded, dataset.records, setup.contexts)
    editing = build.build_editing(config, setup)
    measurer = build.build_measurer(config, loaded, dataset, setup.weights, fingerprint)
    check_objective(config.objective.metric, measurer.tables.described())
    facts["config_hash"] = config_hash(identity(asdict(config)))
    facts["contexts"] = list(setup.contexts)
    facts["columns"] = measurer.tables.described()
    facts["editor"] = editing.facts()
    if found.differences:
        logger.warning(
            "%s holds another run (%s): starting anew", folder, "; ".join(found.differences)
        )
        folder.discard(TRACKERS)
    settings = RunSettings(
        batch_size=config.edits.batch_size,
        checkpoint_every=config.checkpoint.every,
        run_hash=run_hash(facts),
        collapse=Collapse(**asdict(config.collapse)),
    )
    checkpoints = Checkpoints(folder.checkpoints, config.checkpoint.keep, config.checkpoint.steps)
    tables = measurer.tables
    with open_trackers(config.trackers, folder.path, identity(asdict(config)), tables) as track:
        stream = SequentialRun(
            dataset=dataset,
            weights=setup.weights,
            editing=editing,
            untouched=UntouchedParameters(loaded, setup.weights.layers),
            measurer=measurer,
            recorder=Recorder(folder, tables.tables, _of_run(config, folder)),
            checkpoints=checkpoints,
            settings=settings,
            track=track,
        )
        if found.resumes:
            stream.take_back_provisional(found.earlier_records)
            folder.resume(facts)
        else:
            folder.begin(facts)
        write_config(config, folder.config_file)
        return stream.run()


def _of_run(config: Config, folder: RunFolder) -> dict[str, object]:
    """The columns that every table carries."""
    return {
        "run": folder.name,
        "editor": config.editor.name,
        "sphere": config.sphere.name if config.sphere.enabled else "off",
        "alpha": config.sphere.alpha if config.sphere.enabled else None,
        "model": config.model.name,
        "dataset": config.dataset.name,
        "seed": config.seed,
    }
