"""General ability: what the edited model still knows of tasks that no edit is about."""

import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from sphere_bench.errors import SphereBenchError, check_at_least
from sphere_bench.evaluation import harness
from sphere_bench.evaluation.columns import Column, Declared, Table
from sphere_bench.evaluation.kept_answers import answers_file
from sphere_bench.evaluation.probe import Findings, Moment, ProbeSetup
from sphere_bench.evaluation.scopes import check_sizes
from sphere_bench.models.batching import Budget, backing_off

logger = logging.getLogger(__name__)

KEY = "probes.ability"
ABILITIES = Table(
    "abilities",
    "one row for each step, task and metric",
    (
        Column("task", "text", "a task or group of lm-eval, by its name there"),
        Column("metric", "text", "by its name there, a filter's behind it"),
        Column("value", "real", "of the metric; a share as a rule, not in percent"),
        Column("stderr", "real", "its standard error over items"),
        Column("chance", "real", "what blind guesses or one and the same answer would have"),
        Column("items", "whole", "how many were asked"),
        Column("seconds", "real", "time of the task, or of the whole group asked for", "s"),
    ),
)  # fmt: skip


class Ability:
    """Asks tasks of lm-eval, EleutherAI's evaluation harness, on the model in memory.

    What the unedited model answers is kept in the setup's cache: it is the same in every run of a
    sweep, and a large part of what the probe costs.

    Args:
        setup: the run's model.
        tasks: tasks, groups and tags of lm-eval, those of this package (``sphere``,
            ``sphere_published``, ``tiny``) among them, or YAML files of tasks. A task that is part
            of a group among them is asked with the group.
        items: of each task, the first ones; null is all.
        include_path: a folder with YAML files of tasks of your own; null is none.
        data_path: the folder with the files of SPHERE's four tasks.
        rows_per_batch: prompts in one forward; fewer where memory runs out.
        apply_chat_template: every prompt is a user's turn in the tokenizer's own chat template, as
            by ``--apply_chat_template`` of lm-eval's command line.
        required: whether it is an error that lm-eval or SPHERE's files are missing. Without, a
            warning says so, and what needs them is not asked.

    Raises:
        SphereBenchError: lm-eval or a file is missing, or a task cannot be loaded.
    """

    declares = Declared(tables=(ABILITIES,))

    def __init__(
        self,
        setup: ProbeSetup,
        tasks: Sequence[str],
        items: int | None = None,
        include_path: str | None = None,
        data_path: str | None = None,
        rows_per_batch: int = 16,
        apply_chat_template: bool = False,
        required: bool = True,
    ) -> None:
        check_sizes(KEY, items=items)
        if apply_chat_template and not setup.loaded.tokenizer.chat_template:
            raise SphereBenchError(
                f"{KEY}.apply_chat_template=true: {setup.loaded.tokenizer.name_or_path}: its "
                "tokenizer has no chat template: set it to false"
            )
        check_at_least(f"{KEY}.rows_per_batch", rows_per_batch, 1)
        self.loaded = setup.loaded
        self.cache, self.fingerprint = setup.cache, setup.fingerprint
        self.items = items
        self.apply_chat_template = apply_chat_template
        self._rows = Budget(rows_per_batch)
        self._tasks: dict[str, Any] = {}
        self._chances: dict[str, float] = {}
        asked, missing = _with_what_they_need(tasks, data_path)
        if missing is not None:
            if required:
                raise SphereBenchError(missing)
            left = (
                f"of general ability only {', '.join(asked)} is"
                if asked
                else "no general ability is"
            )
            logger.warning("%s measured: %s", left, missing)
        if asked:
            metadata = {} if data_path is None else {"data_path": data_path}
            with harness.random_states_kept(self.loaded.device):
                found = harness.Tasks(asked, include_path, metadata, KEY)
            self._tasks = found.loaded
            self._chances = found.chances(items)

    def measure(self, moment: Moment) -> Findings:
        rows = []
        unedited = self.fingerprint if moment.step == 0 else None
        for name, tasks in self._tasks.items():
            started = perf_counter()
            kept = None
            if self.cache and unedited:
                asked = (name, self.items, self.apply_chat_template, self._rows.size)
                kept = answers_file(self.cache, self.loaded, unedited, *asked)
            scores = backing_off(partial(self._scores, name, tasks, kept), self._rows, "rows")
            seconds = perf_counter() - started
            rows += [
                {**score._asdict(), "chance": self._chance(score), "seconds": seconds}
                for score in scores
            ]
        return Findings(tables={ABILITIES.name: rows})

    def _scores(
        self, name: str, tasks: Any, kept_answers: Path | None, rows: int
    ) -> list[harness.Score]:
        try:
            return harness.scores(
                self.loaded, tasks, self.items, rows, self.apply_chat_template, kept_answers
            )
        # A prompt that is too long for the model, for instance.
        except (AssertionError, ValueError, KeyError, IndexError, TypeError) as error:
            raise SphereBenchError(f"{KEY}: lm-eval fails on {name}: {error}") from error

    def _chance(self, score: harness.Score) -> float:
        """NaN where it is not known what a guess would have."""
        if score.metric == "mcc":
            return 0.0
        is_share = score.metric.partition(",")[0].startswith(("acc", "exact_match"))
        return self._chances.get(score.task, math.nan) if is_share else math.nan


def _with_what_they_need(
    tasks: Sequence[str], data_path: str | None
) -> tuple[Sequence[str], str | None]:
    """The tasks that can be asked; what the others need, and the mend, if there are others."""
    without = f"or leave it out with {KEY}.every=0"
    if not harness.is_installed():
        return [], f"{KEY} needs lm-eval: pip install 'sphere-bench[lm-eval]', {without}"
    spheres = harness.tasks_with_files_elsewhere()
    others = [name for name in tasks if name not in spheres]
    if data_path is None and len(others) < len(tasks):
        return others, (
            f"{KEY}.tasks={','.join(tasks)} needs the files of SPHERE's tasks: name their folder "
            f"with {KEY}.data_path, choose other tasks, {without}"
        )
    return tasks, None
