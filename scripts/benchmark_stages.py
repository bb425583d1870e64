"""The sections of `benchmark.py`: memory, stages, the value solver's rate, growth."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import pandas
import torch
from benchmark_work import (
    count_gradient_tokens,
    count_launches,
    request_work,
    sample_rates,
    synchronize,
    useful_operations,
)

from sphere_bench.build import (
    build_editing,
    build_model,
    build_setup,
    build_sphere,
    dtype_named,
)
from sphere_bench.config.schema import Config
from sphere_bench.data.configured import build_dataset
from sphere_bench.data.records import EditRequest, Record
from sphere_bench.editing.batch import BatchReport
from sphere_bench.editing.locate_then_edit import LocateThenEdit
from sphere_bench.editing.pipeline import EditingPipeline
from sphere_bench.editing.stages import STAGES
from sphere_bench.editing.statistics.second_moments import second_moments, token_count
from sphere_bench.editing.statistics.texts import ordinary_texts
from sphere_bench.errors import SphereBenchError
from sphere_bench.evaluation.teacher_forced import score_records
from sphere_bench.geometry.energy import row_geometry
from sphere_bench.models.tokens import encode, token_windows
from sphere_bench.stream.runner import peak_memory_bytes
from tests.reference import memit
from tests.reference.scoring import score_record
from tests.reference.statistics import second_moment

PRECISIONS = (torch.float32, torch.bfloat16)


class Benchmark:
    """One configuration; every section adds to ``rows``.

    Args:
        config: what is edited: the first batch of its dataset, on the unedited model.
        reference_edits: how many of that batch's requests the reference edits and scores.
    """

    def __init__(self, config: Config, reference_edits: int) -> None:
        self.config = config
        dataset = build_dataset(config)
        self.accuracy = dataset.accuracy
        self.loaded = build_model(config)
        self.device = self.loaded.device
        setup = build_setup(config, self.loaded, dataset)
        self.second_moments = dict(setup.second_moments())
        self.setup = replace(setup, second_moments=lambda: self.second_moments)
        self.records: list[Record] = list(dataset.records[: config.edits.batch_size])
        self.requests: list[EditRequest] = [record.request for record in self.records]
        self.sample = min(reference_edits, len(self.requests))
        self.precision = self.setup.values.precision or self.loaded.dtype
        self.rows: list[dict[str, Any]] = []

    def table(self) -> pandas.DataFrame:
        """All rows, each with what was measured."""
        facts = {
            "model": self.config.model.name,
            "editor": self.config.editor.name,
            "device": str(self.device),
            "dtype": _name(self.loaded.dtype),
            "precision": _name(self.precision),
            "statistics_precision": self.config.statistics.precision or _name(self.loaded.dtype),
            "edits": len(self.requests),
            "reference_edits": self.sample,
            "threads": torch.get_num_threads(),
        }
        return pandas.DataFrame([{**row, **facts} for row in self.rows])

    def memory(self) -> None:
        """Peak memory of batches of rising size, two iterations each."""
        count = len(self.requests)
        for size in (*(size for size in (1, 10, 100) if size < count), count):
            self._tell(f"memory of a batch of {size}")
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            # A process's peak can be reset on Linux only; elsewhere the sizes rise anyhow.
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
            self._edit(self.requests[:size], steps=2)
            peak = peak_memory_bytes(self.setup.weights) or 0
            self._add("memory", f"peak, batch of {size}", "MiB", peak / 2**20)

    def stages(self) -> None:
        """Seconds an edit of every stage, and what the value solver makes of the machine.

        The reference edits a sample of the batch. Its values are scaled to the whole batch by the
        iterations, its keys by the requests; its dense solves and decompositions stay as they are,
        since they cost any batch the same.
        """
        count = len(self.requests)
        self._tell("warming up")
        with count_gradient_tokens(self.loaded) as counted:  # in the first of two iterations
            self._edit(self.requests, steps=2)
        self._tell(f"editing {count} requests")
        with sample_rates(self.loaded, PRECISIONS) as rates:
            report = self._edit(self.requests)
        report.seconds["values"] -= rates.seconds
        own = {stage: report.seconds[stage] / count for stage in STAGES}
        numbers = (self.config.energy.exponent, self.config.energy.eps)
        weights = self.setup.weights.current.values()
        energy = sum(self._seconds(row_geometry, weight, *numbers) for weight in weights) / count

        plain: dict[str, float] = {}
        if self.sample:
            self._tell(f"the reference edits {self.sample} requests")
            self._restore()
            requests, weight = self.requests[: self.sample], self.config.model.second_moment_weight
            sphere = build_sphere(self.config)
            slow = memit.edit(self.setup, requests, self.second_moments, weight, sphere)
            iterations = sum(map(len, report.losses)) / sum(map(len, slow.losses))
            scales = zip(STAGES, (iterations, count / self.sample, 1, 1), strict=True)
            plain = {stage: scale * slow.seconds[stage] / count for stage, scale in scales}
        for stage in STAGES:
            self._add("stage", stage, "s/edit", own[stage], plain.get(stage))
        total = sum(own.values())
        self._add("stage", "edit", "s/edit", total, sum(plain.values()) or None)
        self._add("stage", "energy", "s/edit", energy)
        for stage, seconds in (("transform", own["transform"]), ("energy", energy)):
            share = 100 * seconds / (total + energy)
            self._add("stage", f"{stage}, share of a batch", "%", share)
        self._value_solver(report, rates.mean(), max(counted.values(), default=0))
        if self.sample:
            # That of the same requests: the work is the same.
            own_loss, plain_loss = (
                sum(losses[-1] for losses in found[: self.sample]) / self.sample
                for found in (report.losses, slow.losses)
            )
            self._add("values", "final loss, the sample's", "nats", own_loss, plain_loss)
        self._restore()

    def evaluation(self) -> None:
        """Seconds a record."""
        self._tell("evaluation")
        score_records(self.loaded, self.records[:2], self.accuracy)
        own = self._seconds(score_records, self.loaded, self.records, self.accuracy)
        plain = 0.0
        for record in self.records[: self.sample]:
            pairs = [
                (prompt.prompt, target)
                for prompt in record.case.prompts
                for target in (prompt.target_new, prompt.target_true)
                if target is not None
            ]
            plain += self._seconds(score_record, self.loaded, pairs) / self.sample
        self._add("stage", "evaluation", "s/record", own / len(self.records), plain or None)

    def statistics(self, tokens: int | None) -> None:
        """Seconds that all edited layers take for a thousand tokens of text.

        One pass for all layers and the reference's passes, each from the texts on, take turns, so
        that a machine whose speed drifts is as fast for one as for the other.
        """
        if tokens == 0:
            return
        self._tell("key statistics")
        config, layers = self.config.statistics, self.setup.weights.layers
        wanted = token_count(
            self.loaded,
            layers,
            tokens or config.tokens,
            self.config.editor.tokens_per_dimension,
        )
        texts: list[str] = []
        count = 0
        for text in ordinary_texts(self.loaded, config.corpus):
            texts.append(text)
            count += len(encode(self.loaded.tokenizer, text).ids)
            if count >= wanted:
                break

        def plain_pass(layer: int, limit: int = count) -> None:
            windows = token_windows(self.loaded, texts, limit, config.max_length)
            second_moment(self.loaded, layer, windows)

        measure = partial(
            second_moments,
            max_length=config.max_length,
            tokens_per_batch=config.tokens_per_batch,
            precision=dtype_named(config.precision),
        )
        few = min(config.tokens_per_batch, count)  # to warm up
        measure(self.loaded, layers, texts, few)
        plain_pass(layers[-1], few)
        own = [self._seconds(measure, self.loaded, layers, texts, count)]
        plain = 0.0
        for layer in layers if self.sample else ():
            plain += self._seconds(plain_pass, layer)
            own.append(self._seconds(measure, self.loaded, layers, texts, count))
        scale = 1000 / count
        self._add("stage", "statistics", "s/1000 tokens", scale * mean(own), scale * plain or None)

    def growth(self, steps: int, edits: int) -> None:
        """The last of many batches and the first, all of the same requests and iterations.

        The medians of some count, a tenth or at least three where there are as many, since a batch
        takes longer when the machine is busy.
        """
        if not steps or not edits:
            return
        self._tell(f"{steps} batches, one after another")
        self._restore()
        pipeline = self._pipeline(loss_threshold=0.0)
        requests = self.requests[:edits]
        pipeline.edit(requests)  # does what is done once a run
        found = [pipeline.edit(requests).seconds for _ in range(steps)]
        part = max(1, min(steps // 2, max(3, steps // 10)))
        name = f"steps {steps - part + 1}-{steps} and 1-{part}"
        for stage in STAGES:
            last, first = (
                median(seconds[stage] for seconds in some) for some in (found[-part:], found[:part])
            )
            self._add("growth", f"{stage}, {name}", "s/batch", last, first)
        self._restore()

    def _value_solver(
        self, report: BatchReport, rates: dict[torch.dtype, float], padded_tokens: int
    ) -> None:
        """The solver's rate in a batch, and the padding among the tokens of its first iteration."""
        for dtype, rate in rates.items():
            self._add("machine", f"matrix product, {_name(dtype)}", "GFLOP/s", rate / 1e9)
        iterations = [len(losses) for losses in report.losses]
        self._add("values", "iterations", "1/edit", sum(iterations) / len(iterations))
        work = self._rate("useful work a second", report, rates.get(self.precision))
        self._add("values", "useful work", "GFLOP/edit", work / len(iterations))
        if self.precision != torch.bfloat16:
            self._tell("the layers above the edited ones in bfloat16")
            rounded = self._edit(self.requests, precision=torch.bfloat16)
            self._rate("the same in bfloat16", rounded, rates[torch.bfloat16])
        self._restore()
        launches = count_launches(self.setup, self.requests)
        self._add("values", "kernels", "1/iteration", launches.kernels)
        self._add("values", "starting them", "ms/iteration", 1e3 * launches.host)
        share = 100 * launches.host / launches.whole
        self._add("values", "starting them, share of an iteration", "%", share)
        needed = sum(request_work(self.setup, request).tokens for request in self.requests)
        if padded_tokens:
            self._add("values", "padding", "%", 100 * (1 - needed / padded_tokens))

    def _rate(self, name: str, report: BatchReport, machine: float | None) -> float:
        """Add the rate of the solver beside the machine's; returns its useful work in GFLOP."""
        iterations = [len(losses) for losses in report.losses]
        work = useful_operations(self.setup, self.requests, iterations) / 1e9
        achieved = work / report.seconds["values"]
        self._add("values", name, "GFLOP/s", achieved, machine and machine / 1e9)
        # Here the more the better.
        self.rows[-1]["ratio"] = machine and achieved * 1e9 / machine
        return work

    def _edit(self, requests: Sequence[EditRequest], **values: Any) -> BatchReport:
        """A batch by a fresh editor on the unedited model, with other numbers of the solver."""
        self._restore()
        return self._pipeline(**values).edit(requests)

    def _pipeline(self, **values: Any) -> EditingPipeline:
        setup = replace(self.setup, values=replace(self.setup.values, **values))
        pipeline = build_editing(self.config, setup)
        if not isinstance(pipeline.editor, LocateThenEdit):
            raise SphereBenchError(
                f"editor={self.config.editor.name} has no stages to time: choose one that finds "
                "target values, such as editor=memit"
            )
        return pipeline

    def _restore(self) -> None:
        """Take back all edits."""
        for layer, weight in self.setup.weights.pretrained.items():
            self.setup.weights.write(layer, weight)

    def _seconds(self, function: Callable[..., object], *arguments: object) -> float:
        synchronize(self.device)
        started = perf_counter()
        function(*arguments)
        synchronize(self.device)
        return perf_counter() - started

    def _add(
        self, section: str, name: str, unit: str, value: float, reference: float | None = None
    ) -> None:
        ratio = reference / value if reference and value else None
        row = {"section": section, "name": name, "unit": unit, "value": value}
        self.rows.append({**row, "reference": reference, "ratio": ratio})

    def _tell(self, what: str) -> None:
        print(f"benchmark: {what}", file=sys.stderr)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
