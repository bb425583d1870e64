"""Tasks of lm-eval, EleutherAI's evaluation harness, on a model that is in memory.

The package is optional: nothing here is called without it.
"""

import io
import logging
import math
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch

from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.kept_answers import remembering
from sphere_bench.models.loading import LoadedModel

#: The YAML files of the tasks that come with this package.
OWN_TASKS = Path(__file__).with_name("tasks")
#: Resamples behind the standard error of what is no mean over items.
RESAMPLES = 200
# What lm-eval's command line sets before a task. An own generator draws the examples of a prompt.
_SEED, _OTHER_SEED = 0, 1234
# Keeps its bootstrap out of further processes, which would be forks of the one with the model.
_ONE_PROCESS = "DISABLE_MULTIPROC"


class Score(NamedTuple):
    """A metric of a task or of a group of tasks.

    Attributes:
        task, metric: lm-eval's names. A filter's name stands behind the metric's.
        value: the metric.
        stderr: its standard error over items; NaN where there is none.
        items: how many were asked.
    """

    task: str
    metric: str
    value: float
    stderr: float
    items: int


def is_installed() -> bool:
    """Whether lm-eval is there."""
    return find_spec("lm_eval") is not None


def tasks_with_files_elsewhere() -> set[str]:
    """SPHERE's four tasks, as published and corrected, and their tags: the user has their files."""
    return {"sphere", "sphere_published", *(file.stem for file in OWN_TASKS.glob("sphere_*.yaml"))}


class Tasks:
    """Tasks, with their items loaded.

    Args:
        names: of tasks, groups and tags, or YAML files of tasks.
        include_path: a folder with YAML files of one's own.
        metadata: is given to every task, as by ``--metadata`` of lm-eval's command line.
        key: of the configuration, for errors.

    Attributes:
        loaded: each task to what lm-eval has loaded for it, a group and its tasks together. A task
            is not there beside its group.

    Raises:
        SphereBenchError: there is no such folder, lm-eval knows no such task, or cannot load its
            items.
    """

    def __init__(
        self,
        names: Sequence[str],
        include_path: str | None,
        metadata: Mapping[str, Any],
        key: str,
    ) -> None:
        from lm_eval.tasks import TaskManager

        folders = [OWN_TASKS]
        if include_path is not None:
            folders.append(Path(include_path).expanduser())
            if not folders[-1].is_dir():
                raise SphereBenchError(f"{key}.include_path={include_path}: no such folder")

        def manager(include_defaults: bool) -> Any:
            return TaskManager(
                include_path=folders, include_defaults=include_defaults, metadata=dict(metadata)
            )

        with quiet():
            known = manager(include_defaults=False)
            # Going through lm-eval's own ten thousand takes seconds.
            if not all(_is_known(known, name) for name in names):
                known = manager(include_defaults=True)
            parts = {
                part: loaded
                for name in names
                for part, loaded in _parts(name, _load(known, name, key)).items()
            }
        in_groups = {task for part in parts.values() if part["groups"] for task in part["tasks"]}
        self.loaded = {
            name: part for name, part in parts.items() if part["groups"] or name not in in_groups
        }

    def chances(self, items: int | None) -> dict[str, float]:
        """Each task to what the best constant answer or a blind guess has on its first items.

        NaN of no items.
        """
        return {
            name: _chance(task, items)
            for loaded in self.loaded.values()
            for name, task in loaded["tasks"].items()
        }


def scores(
    loaded: LoadedModel,
    tasks: Any,
    items: int | None,
    rows: int,
    apply_chat_template: bool = False,
    kept_answers: Path | None = None,
) -> list[Score]:
    """What the model scores on one of :attr:`Tasks.loaded`.

    Weights, tokenizer and the random states of the process are the same afterwards.

    Args:
        items: of each task, the first ones; ``None`` is all.
        rows: in one forward.
        apply_chat_template: every prompt is a user's turn in the tokenizer's chat template.
        kept_answers: a file of answers that the same model gave; those that it lacks are added.

    Raises:
        SphereBenchError: the disk is full.
    """
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    with quiet(), random_states_kept(loaded.device):
        random.seed(_SEED)
        np.random.seed(_OTHER_SEED)
        torch.manual_seed(_OTHER_SEED)
        os.environ[_ONE_PROCESS] = "1"
        for task in tasks["tasks"].values():
            task.set_fewshot_seed(seed=_OTHER_SEED)
        # A copy of the tokenizer: a padding token and side are set.
        model = HFLM(loaded.model, tokenizer=deepcopy(loaded.tokenizer), batch_size=rows)
        with remembering(model, kept_answers) as asked:
            found = evaluate(
                asked,
                tasks,
                limit=items,
                bootstrap_iters=RESAMPLES,
                apply_chat_template=apply_chat_template,
            )
        return list(_read(found, tasks["tasks"]))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval's progress bars, prints, warnings and log from the run's console and log."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    nowhere = io.StringIO()
    try:
        with redirect_stderr(nowhere), redirect_stdout(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def random_states_kept(device: torch.device) -> Iterator[None]:
    """Put the states of Python's, numpy's and torch's generators back at the end of the block."""
    python, arrays = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


def _is_known(manager: Any, name: str) -> bool:
    return name in manager.all_tasks or Path(name).is_file()


def _load(manager: Any, name: str, key: str) -> Any:
    if not _is_known(manager, name):
        raise SphereBenchError(
            f"{key}.tasks: lm-eval knows no task {name}: `lm-eval ls tasks` shows all; the folder "
            f"of your own is {key}.include_path"
        )
    try:
        loaded = manager.load(name)
    except SphereBenchError:
        raise
    # Whatever a task's own code or the hub's client raises, the user can do the same about it.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SphereBenchError(
            f"{key}.tasks: cannot load {name} ({reason}): get its data on a machine with a "
            "network, or leave it out"
        ) from error
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return loaded


def _parts(name: str, loaded: Any) -> dict[str, Any]:
    """A group as a whole, and the tasks of a tag one by one."""
    if loaded["groups"]:
        return {name: loaded}
    return {each: {**loaded, "tasks": {each: task}} for each, task in loaded["tasks"].items()}


def _read(found: Mapping[str, Any], tasks: Mapping[str, Any]) -> Iterator[Score]:
    for name, metrics in found["results"].items():
        for key, value in metrics.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = metrics.get(f"{metric}_stderr,{chosen}")
            if not isinstance(stderr, int | float):
                said = [
                    sample[metric]
                    for sample in found["samples"].get(name, ())
                    if sample["filter"] == chosen and metric in sample
                ]
                stderr = _resampled(tasks[name].aggregation()[metric], said) if said else math.nan
            yield Score(
                name,
                metric if chosen == "none" else key,
                float(value),
                float(stderr),
                int(metrics["sample_len"]),
            )


def _resampled(metric: Callable[[Sequence[Any]], float], items: Sequence[Any]) -> float:
    """Standard error of a metric that is no mean over items; NaN with fewer than two."""
    if len(items) < 2:
        return math.nan
    draw = random.Random(0)
    return stdev(metric(draw.choices(items, k=len(items))) for _ in range(RESAMPLES))


def _chance(task: Any, items: int | None) -> float:
    """The larger of the share that guesses hit and that of the commonest right answer."""
    docs = list(islice(task.eval_docs, items))
    if not docs:
        return math.nan
    choices = [
        task.doc_to_choice(doc) if task.get_config("doc_to_choice") is not None else None
        for doc in docs
    ]
    right = [_right_answers(task, doc, each) for doc, each in zip(docs, choices, strict=True)]
    common: dict[str, int] = {}
    for answers in right:
        for answer in answers:
            common[answer] = common.get(answer, 0) + 1
    guessed = fmean(
        len(answers) / len(each) if each and task.OUTPUT_TYPE == "multiple_choice" else 0.0
        for answers, each in zip(right, choices, strict=True)
    )
    return max(guessed, max(common.values(), default=0) / len(docs))


def _right_answers(task: Any, doc: Any, choices: Sequence[str] | None) -> set[str]:
    # With several prompts and one continuation, the prompt's number is the answer.
    gold = task.doc_to_text(doc) if getattr(task, "multiple_input", 0) else task.doc_to_target(doc)
    several = gold if isinstance(gold, list) else [gold]
    return {
        str(choices[each]) if choices and isinstance(each, int) else str(each) for each in several
    }
