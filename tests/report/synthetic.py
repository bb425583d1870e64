"""Run folders without a model: invented numbers, written as a run writes them."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas
from omegaconf import OmegaConf

LAYERS = (1, 2)
BATCH = 10
SCOPES = ("batch", "seen", "first")
STAGES = ("values", "keys", "update", "transform", "evaluate", "energy")
METRICS = ("efficacy", "generalization", "specificity", "score")
KINDS = {"rewrite": "efficacy", "paraphrase": "generalization", "neighbourhood": "specificity"}
# Measure to its share of the efficacy that the caller gives.
MEASURES = {"success": 1.0, "accuracy": 0.5}
STEPS_IN_A_FILE = 4

_WRITTEN = ("update_norm", "applied_norm", "rank", "residual_norm")
_MEASURED = (
    *("he", "he_normalized", "he_ratio", "weight_norm"),
    *("norm_growth", "drift", "subspace_overlap", "cos_mean", "cos_std", "cos_p01", "cos_p99"),
)


def falling(step: int) -> float:
    """Efficacy that starts at 96 and loses four points a step."""
    return 100.0 - 4 * step


def rising(step: int) -> float:
    """An energy ratio that gains a tenth of a percent a step."""
    return 1 + 0.001 * step


def write_run(
    root: Path,
    *,
    editor: str = "memit",
    sphere: str = "off",
    seed: int = 0,
    steps: int = 6,
    made: int | None = None,
    state: str = "done",
    efficacy: Callable[[int], float] = falling,
    energy: Callable[[int], float] | None = rising,
    headline: str = "success",
    kinds: Mapping[str, str] = KINDS,
    metrics: Sequence[str] = METRICS,
    measures: Mapping[str, float] = MEASURES,
    every: Mapping[str, int] = MappingProxyType({}),
    stages: Sequence[str] = STAGES,
    geometry: bool = True,
    cases: bool = True,
    generations: bool = False,
    beside: Mapping[str, float] = MappingProxyType({}),
    perplexity: bool = True,
    skipped: Collection[int] = (),
    earlier_version: bool = False,
    **config: Any,
) -> Path:
    """A run of ``steps`` batches, of which ``made`` are recorded; step 0 always is.

    Args:
        efficacy: step to the headline efficacy in percent; the other numbers follow from it, the
            seed and chance.
        energy: step to the ratio of the energy to the unedited model's; the usual one is noisy.
            None: nothing of the weights was measured.
        headline: ``accuracy`` leaves success empty, as on ZsRE.
        kinds: kind of prompt to its metric.
        measures: to their share of ``efficacy``.
        every: measure to the steps between its turns; each step by default.
        geometry, cases, generations, perplexity: whether they were recorded.
        beside: numbers of a scope that are no scores, to their values at the last step.
        skipped: steps whose batch was left out.
        earlier_version: as the version wrote it that declared nothing and had a file for each step.
        config: keys beside the usual ones, with ``__`` for the dot.
    """
    folder = root / f"{editor}-{sphere}-seed{seed}"
    generator = np.random.default_rng([seed, len(editor), len(sphere)])
    last, total = steps if made is None else made, steps * BATCH
    rows: dict[str, list[dict[str, Any]]] = {"steps": [], "layers": []}
    for step in range(last + 1):
        at = {"step": step, "edits": step * BATCH}
        noise = 1e-4 * generator.normal() if energy is rising and step else 0
        he = energy(step) + noise if energy is not None else None
        score = efficacy(step) if step else 5.0
        scores = {
            f"{metric}_{measure}": share * score
            if (step == last or step % every.get(measure, 1) == 0)
            and not (measure == "success" and headline == "accuracy")
            else None
            for measure, share in measures.items()
            for metric in metrics
        }
        shown = {metric: scores[f"{metric}_{headline}"] for metric in metrics}
        numbers = {name: value * step / last for name, value in beside.items()}
        own = {
            **({} if he is None else {"he": 0.5 * he, "he_ratio": he}),
            **({"perplexity": 20.0 * (he or 1)} if perplexity else {}),
            **{f"seconds_{stage}": 0.5 for stage in stages},
            "peak_memory_bytes": 2**30,
            "nonfinite": step in skipped,
            "skipped": step in skipped,
            "collapsed": False,
        }
        rows["steps"] += [
            {**at, "scope": scope, "records": 10, **shown, **scores, **numbers, **own}
            for scope in SCOPES
        ]
        rows["layers"] += [{**at, "layer": layer, **_layer_row(step, he)} for layer in LAYERS]
        if cases:
            rows.setdefault("cases", []).extend(
                {**at, **_case_row(edited_at, next(iter(kinds)), measures)}
                for edited_at in range(1, max(step, 1) + 1)
            )
        if generations:
            rows.setdefault("generations", []).extend(
                {**at, **_generation_row(edited_at, next(iter(kinds)))}
                for edited_at in range(1, max(step, 1) + 1)
            )
        if geometry:
            rows.setdefault("geometry", []).extend(
                {**at, "layer": layer, **_portrait(step, generator)} for layer in LAYERS
            )
    of_run = {"run": folder.name, "editor": editor, "sphere": sphere, "alpha": 0.8, "seed": seed}
    for table, content in rows.items():
        frame = pandas.DataFrame(content)
        if not earlier_version:
            named = pandas.DataFrame([of_run] * len(frame)).astype("category")
            frame = pandas.concat([named, frame], axis=1)
        (folder / table).mkdir(parents=True, exist_ok=True)
        size = 1 if earlier_version else STEPS_IN_A_FILE
        for first, part in frame.groupby(frame["step"] // size * size):
            part.to_parquet(folder / table / f"part-{first:05d}.parquet", index=False)
    progress = {"step": last, "edits": last * BATCH, "total": total, "batch_size": BATCH}
    counts = {} if earlier_version else {"rows": {table: len(each) for table, each in rows.items()}}
    updated = {"updated_at": "2026-01-01T00:00:00+00:00"}
    _write_json(folder / "progress.json", {**progress, "state": state, **counts, **updated})
    content = {
        "model": {"name": "toy", "layers": list(LAYERS)},
        "dataset": {"name": "facts", "path": None},
        "editor": {"name": editor, "method": {"ridge": len(editor)}},
        "edits": {"total": total, "batch_size": BATCH},
        "sphere": {"name": sphere, "enabled": sphere != "off", "alpha": 0.8, "eta": 0.5},
        "run": {"root": str(root), "name": folder.name},
        "device": "auto",
        "seed": seed,
    }
    composed = OmegaConf.create(content)
    for key, value in config.items():
        OmegaConf.update(composed, key.replace("__", "."), value)
    OmegaConf.save(composed, folder / "config.yaml")
    declared = {
        "format": 2,
        "config": OmegaConf.to_container(composed),
        "headline": headline,
        "kinds": [
            {"name": name, "metric": metric, "wants": "new", "scored": True}
            for name, metric in kinds.items()
        ],
        "columns": [
            _declare(table, column, metrics, measures, beside)
            for table, content in rows.items()
            for column in content[0]
        ],
    }
    provenance = {"started_at": "2026-01-01T00:00:00+00:00", "packages": {"torch": "2.13.0"}}
    _write_json(
        folder / "provenance.json", provenance if earlier_version else provenance | declared
    )
    return folder


def _declare(
    table: str,
    name: str,
    metrics: Sequence[str],
    measures: Mapping[str, float],
    beside: Collection[str],
) -> dict[str, Any]:
    column = {"table": table, "name": name, "type": "real", "meaning": f"meaning of {name}"}
    column |= {"unit": "", "metric": "", "measure": "", "stage": "", "shown": False}
    column["per"] = {"steps": "step", "layers": "layer"}.get(table, "row")
    scores = {metric: (metric, "headline") for metric in metrics}
    for metric, measure in product(metrics, measures):
        scores[f"{metric}_{measure}"] = (metric, measure)
    if table == "steps" and name in scores:
        metric, measure = scores[name]
        return column | {"per": "scope", "unit": "%", "metric": metric, "measure": measure}
    if table == "steps" and name in beside:
        return column | {"per": "scope", "unit": "nats"}
    if table == "generations" and name == "match":
        return column | {"measure": "generation"}
    if name.startswith("seconds_"):
        return column | {"unit": "s", "stage": name.removeprefix("seconds_")}
    return column


def _layer_row(step: int, he: float | None) -> dict[str, Any]:
    row = {**dict.fromkeys(_WRITTEN, 0.5), "rank": 20}
    if he is None:
        return row
    return {**row, **dict.fromkeys(_MEASURED, 0.5), "he_ratio": he, "drift": 0.1 * step}


def _case_row(edited_at: int, kind: str, measures: Mapping[str, float]) -> dict[str, Any]:
    return {
        "scope": "seen",
        "case_id": str(edited_at),
        "edited_at": edited_at,
        "kind": kind,
        "prompt_index": 0,
        "nll_new": 0.5,
        "nll_true": 0.5,
        **{measure: float(edited_at % 2) for measure in measures},
    }


def _generation_row(edited_at: int, kind: str) -> dict[str, Any]:
    return {
        "scope": "seen",
        "case_id": str(edited_at),
        "edited_at": edited_at,
        "kind": kind,
        "prompt_index": 0,
        "text": " Rome.",
        "answer": "Rome",
        "match": float(edited_at % 3 == 0),
    }


def _portrait(step: int, generator: np.random.Generator) -> dict[str, Any]:
    cosines = generator.normal(scale=0.1 + 0.01 * step, size=500).clip(-1, 1)
    return {
        "cosine_counts": np.histogram(cosines, 2000, (-1, 1))[0].tolist(),
        "neurons": list(range(20)),
        "plane_x": generator.normal(size=20).tolist(),
        "plane_y": generator.normal(size=20).tolist(),
    }


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content), "utf-8")
