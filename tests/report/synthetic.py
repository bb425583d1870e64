"""Run folders without a model: invented numbers, written through the recorder's own schemas."""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from sphere_bench.evaluation.metrics import METRICS
from sphere_bench.recording import SCHEMAS, Progress, Recorder, State

LAYERS = (1, 2)
BATCH = 10


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
    state: State = "done",
    efficacy: Callable[[int], float] = falling,
    energy: Callable[[int], float] = rising,
    headline: str = "success",
    geometry: bool = True,
    perplexity: bool = True,
    skipped: Collection[int] = (),
    **config: Any,
) -> Path:
    """A run of ``steps`` batches, of which ``made`` are recorded; step 0 always is.

    Args:
        efficacy: step to the headline efficacy in percent; the other numbers follow from it, the
            seed and chance.
        energy: step to the ratio of the energy to the unedited model's; the usual one is noisy.
        skipped: steps whose batch was left out.
        headline: ``accuracy`` leaves success empty, as on ZsRE.
        config: keys beside the usual ones, with ``__`` for the dot.
    """
    folder = root / f"{editor}-{sphere}-seed{seed}"
    recorder = Recorder(folder)
    generator = np.random.default_rng([seed, len(editor), len(sphere)])
    total = steps * BATCH
    for step in range((steps if made is None else made) + 1):
        edits = step * BATCH
        noise = 1e-4 * generator.normal() if energy is rising and step else 0
        he = energy(step) + noise
        score = efficacy(step) if step else 5.0
        recorder.commit_step(
            step,
            steps=[
                {
                    **_step_row(step, edits, scope, score, he, headline),
                    "nonfinite": step in skipped,
                    "skipped": step in skipped,
                    "perplexity": 20.0 * he if perplexity else None,
                }
                for scope in ("batch", "seen", "first")
            ],
            layers=[_layer_row(step, edits, layer, he) for layer in LAYERS],
            cases=[_case_row(step, edits, at) for at in range(1, max(step, 1) + 1)],
            geometry=[_geometry_row(step, edits, layer, generator) for layer in LAYERS]
            if geometry
            else [],
            progress=Progress(step, edits, total, BATCH, state),
        )
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
    provenance = {"started_at": "2026-01-01T00:00:00+00:00", "packages": {"torch": "2.13.0"}}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    return folder


def _filled(table: str, value: float = 0.5, **own: Any) -> dict[str, Any]:
    schema = SCHEMAS[table]  # type: ignore[index]
    return {**{name: value for name in schema.names}, **own}


def _step_row(
    step: int, edits: int, scope: str, efficacy: float, he: float, headline: str
) -> dict[str, Any]:
    accuracy, success = efficacy / 2, efficacy
    shown = success if headline == "success" else accuracy
    return _filled(
        "steps",
        step=step,
        edits=edits,
        scope=scope,
        records=10,
        peak_memory_bytes=2**30,
        **{event: False for event in ("nonfinite", "skipped", "collapsed")},
        he=0.5 * he,
        he_ratio=he,
        **{metric: shown for metric in METRICS},
        **{f"{metric}_accuracy": accuracy for metric in METRICS},
        **{f"{m}_success": success if headline == "success" else None for m in METRICS},
    )


def _layer_row(step: int, edits: int, layer: int, he: float) -> dict[str, Any]:
    drift, rank = 0.1 * step, 20
    return _filled(
        "layers", step=step, edits=edits, layer=layer, he_ratio=he, drift=drift, rank=rank
    )


def _case_row(step: int, edits: int, edited_at: int) -> dict[str, Any]:
    return _filled(
        "cases",
        step=step,
        edits=edits,
        scope="seen",
        case_id=str(edited_at),
        edited_at=edited_at,
        kind="rewrite",
        prompt_index=0,
        success=float(edited_at % 2),
    )


def _geometry_row(
    step: int, edits: int, layer: int, generator: np.random.Generator
) -> dict[str, Any]:
    cosines = generator.normal(scale=0.1 + 0.01 * step, size=500).clip(-1, 1)
    return {
        "step": step,
        "edits": edits,
        "layer": layer,
        "cosine_counts": np.histogram(cosines, 2000, (-1, 1))[0].tolist(),
        "neurons": list(range(20)),
        "plane_x": generator.normal(size=20).tolist(),
        "plane_y": generator.normal(size=20).tolist(),
    }
