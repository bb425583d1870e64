"""Loads a pretrained causal decoder with its tokenizer and layout."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sphere_bench.assets import tiny_gpt2_path
from sphere_bench.errors import SphereBenchError
from sphere_bench.models.batching import is_out_of_memory
from sphere_bench.models.devices import SHARDED, resolve_device
from sphere_bench.models.hooks import keep_token_axis
from sphere_bench.models.layout import Layout, observe_layers
from sphere_bench.models.team import Team

BUNDLED = "bundled"
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


@dataclass(frozen=True)
class LoadedModel:
    """A model that can be edited: in eval mode, its parameters without gradients.

    Attributes:
        model: the causal language model.
        tokenizer: its fast tokenizer.
        layout: where its layers, edited projections and head are.
        layers_return_tuples: whether its decoder layers return tuples, see ``hooks.start_after``.
        team: the processes that have it and share its work.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    layers_return_tuples: bool
    team: Team = field(default_factory=Team)

    @property
    def device(self) -> torch.device:
        """Where tokens go and logits come from."""
        return self.layout.weight(0).device

    def device_of(self, layer: int) -> torch.device:
        """Where a decoder layer is; with ``device=sharded`` not all are on one device."""
        return self.layout.weight(layer).device

    @property
    def positions(self) -> int | None:
        """How many tokens a text may have; ``None`` if the model sets no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def dtype(self) -> torch.dtype:
        return self.layout.weight(0).dtype


def load_model(
    path: str,
    *,
    dtype: str = "float32",
    matmul_precision: str = "highest",
    device: str = "auto",
    revision: str | None = None,
    shape: Mapping[str, Any] | None = None,
    layers_module: str | None = None,
    projection: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a causal decoder by hub name, local folder, GGUF file or ``bundled`` (the tiny GPT-2).

    Args:
        path: where the model is.
        dtype: the name of a torch dtype.
        matmul_precision: set for the whole process, see ``torch.set_float32_matmul_precision``.
        device: ``auto`` (CUDA, else MPS, else CPU), ``sharded`` (layers spread over all GPUs) or a
            torch device.
        revision: the hub's revision.
        shape: a configuration of transformers, with ``model_type``. The model then has random
            weights of this shape, and only its tokenizer comes from ``path``.
        layers_module, projection: see :class:`Layout`.
        trust_remote_code: run code that comes with the model.

    Raises:
        SphereBenchError: the device, the path or the architecture is not usable, or weights are
            missing or not finite.
        RuntimeError: there is no memory for the weights.
    """
    target = resolve_device(device)
    # In any case: an earlier run of a sweep may have set another one.
    torch.set_float32_matmul_precision(matmul_precision)
    if target.type == "cuda":
        # cuDNN plans its attention anew for every shape, and hardly two of our batches have one.
        torch.backends.cuda.enable_cudnn_sdp(False)
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    local = _local_path(path)
    name = path if local is None else str(local)
    if local is not None and local.is_file():
        source["gguf_file"] = local.name
        name = str(local.parent)
    weights_type = getattr(torch, dtype)
    try:
        # First, so that an unknown architecture is reported as such, before anything slow.
        AutoConfig.from_pretrained(name, **source)
        tokenizer = AutoTokenizer.from_pretrained(name, **source)
        if shape is None:
            if device == SHARDED:
                source["device_map"] = "auto"
            elif target.type == "cuda":  # straight there, not through the host's memory
                source["device_map"] = {"": target}
            found: Any = AutoModelForCausalLM.from_pretrained(
                name, dtype=weights_type, output_loading_info=True, **source
            )
            model: PreTrainedModel = found[0]
            _check_weights(path, model, found[1]["missing_keys"])
        elif device == SHARDED:
            raise SphereBenchError(
                "model.shape: random weights are drawn on one device: choose another than sharded"
            )
        else:
            model = random_model(shape, weights_type, target)
        if device != SHARDED:
            nn.Module.to(model, target)
        loaded = wrap_model(model, tokenizer, layers_module=layers_module, projection=projection)
        return replace(loaded, team=Team.join(target))
    except SphereBenchError:
        raise
    except UnpicklingError as error:
        raise SphereBenchError(
            f"model.path={path}: its pickled weights hold more than tensors, and what they hold "
            "would be executed: take the model from a source that gives safetensors"
        ) from error
    # Damaged files raise exceptions of several parsers, but the user can do the same about all.
    except Exception as error:
        _raise_if_out_of_memory(error)
        what = "cannot load it"
        if local is None:
            what = "there is no such folder, and the Hugging Face hub did not give such a model"
        raise SphereBenchError(f"model.path={path}: {what}: {_reason(error)}") from error


def _local_path(path: str) -> Path | None:
    """The model's folder or GGUF file; ``None`` if ``path`` can only be a name on the hub.

    Raises:
        SphereBenchError: ``path`` is none of these.
    """
    location = tiny_gpt2_path() if path == BUNDLED else Path(path).expanduser()
    if path.strip() and (location.is_dir() or (location.is_file() and location.suffix == ".gguf")):
        return location
    if location.is_file() or location.suffix == ".gguf" or not HUB_NAME.fullmatch(path):
        raise SphereBenchError(
            f"model.path={path}: no model folder or .gguf file there; give a folder with "
            "config.json, a GGUF file or a hub name"
        )
    return None


def _check_weights(path: str, model: PreTrainedModel, missing: Collection[str]) -> None:
    """Raise unless every weight is finite and came from the files; others would be random."""
    if missing:
        raise SphereBenchError(
            f"model.path={path} lacks {len(missing)} of the model's weights, such as "
            f"{min(missing)}: get a whole copy of it"
        )
    for name, weight in model.named_parameters():
        if weight.is_meta:
            raise SphereBenchError(
                f"device=sharded: the GPUs have no room for {name} and more: use more of them, or "
                "model.dtype=bfloat16"
            )
        if not torch.isfinite(weight).all():
            raise SphereBenchError(
                f"model.path={path}: the weight {name} is not finite: get another copy of "
                "the model, or use model.dtype=float32 or bfloat16"
            )


def random_model(
    shape: Mapping[str, Any], dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """A model of this shape, created on the device. Its weights are the same every time.

    Raises:
        SphereBenchError: transformers cannot make such a model.
        RuntimeError: there is no memory for it.
    """
    try:
        known = AutoConfig.for_model(shape["model_type"])
        for name in shape:
            if not hasattr(known, name):
                raise ValueError(f"{shape['model_type']} has no {name}")
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), device:
            torch.manual_seed(0)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(**shape), dtype=dtype
            )
    # A wrong shape raises exceptions of several libraries.
    except Exception as error:
        _raise_if_out_of_memory(error)
        raise SphereBenchError(f"model.shape: cannot make it: {_reason(error)}") from error
    return model


def wrap_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    layers_module: str | None = None,
    projection: str | None = None,
) -> LoadedModel:
    """Prepare a model that is in memory for editing.

    Raises:
        SphereBenchError: the tokenizer does not fit, or the architecture cannot be edited.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise SphereBenchError(
            f"{type(tokenizer).__name__} gives no character offsets: use the model's fast "
            "tokenizer (tokenizer.json)"
        )
    if not tokenizer("a")["input_ids"]:
        raise SphereBenchError(
            f"{tokenizer.name_or_path}: its tokenizer knows no words: the folder needs the model's "
            "tokenizer.json"
        )
    _check_embedding(model, tokenizer)
    model.requires_grad_(False)
    model.eval()
    # A dequantised GGUF model is still marked as quantised, and could not be saved.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
        model.hf_quantizer = None  # type: ignore[assignment]
    layout = Layout(model, layers_module, projection)
    behaviour = observe_layers(model, layout)
    if behaviour.flatten:
        for index, layer in enumerate(layout.decoder_layers):
            keep_token_axis(layer, layout.projection(index))
    return LoadedModel(model, tokenizer, layout, behaviour.return_tuples)


def _check_embedding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise unless the embedding has a row for every token that a text may have."""
    # Special tokens do not occur in texts, but for those that the tokenizer itself adds.
    special = set(tokenizer.all_special_ids)
    used = {*tokenizer("a")["input_ids"], *(set(tokenizer.get_vocab().values()) - special)}
    rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if max(used) >= rows:
        raise SphereBenchError(
            f"{tokenizer.name_or_path}: its tokenizer has the token {max(used)}, the embedding of "
            f"{type(model).__name__} only 0 to {rows - 1}: take both from the same model"
        )


def _raise_if_out_of_memory(error: Exception) -> None:
    """Another model or device is the mend then, not another copy of the same."""
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        raise error


def _reason(error: Exception) -> str:
    """The beginning of an error's text, on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."
