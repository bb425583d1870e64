"""A pretrained causal decoder with its tokenizer and layout."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sphere_bench.assets import tiny_gpt2_path
from sphere_bench.errors import SphereBenchError
from sphere_bench.models.layout import Layout, layers_return_tuples

BUNDLED = "bundled"


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be edited: in eval mode, no gradients on its parameters.

    Attributes:
        model: the causal language model.
        tokenizer: its fast tokenizer.
        layout: where its layers, edited projections and head are.
        layers_return_tuples: what its decoder layers return, see ``hooks.start_after``.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    layers_return_tuples: bool

    @property
    def device(self) -> torch.device:
        return self.layout.weight(0).device

    @property
    def positions(self) -> int | None:
        """How many tokens a text may have, ``None`` where the model sets no bound."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def dtype(self) -> torch.dtype:
        return self.layout.weight(0).dtype


def load_model(
    path: str,
    *,
    dtype: str = "float32",
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
        dtype: a torch dtype's name.
        device: ``auto`` (CUDA, else MPS, else CPU) or a torch device.
        revision: the hub's revision.
        shape: a configuration of transformers, ``model_type`` included; the model then has random
            weights of this shape, and ``path`` gives its tokenizer only.
        layers_module, projection: see :class:`Layout`.
        trust_remote_code: run code that comes with the model.

    Raises:
        SphereBenchError: the device, the path or the architecture is not usable, or weights are
            missing or not finite.
    """
    target = resolve_device(device)
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    location = tiny_gpt2_path() if path == BUNDLED else Path(path).expanduser()
    if location.is_file() and location.suffix == ".gguf":
        source["gguf_file"] = location.name
        name = str(location.parent)
    elif location.is_dir():
        name = str(location)
    elif location.is_file() or location.is_absolute() or path.startswith((".", "~")):
        raise SphereBenchError(
            f"model.path={path}: no model folder or .gguf file there; give a folder with "
            "config.json, a GGUF file or a hub name"
        )
    else:
        name = path
    weights_type = getattr(torch, dtype)
    try:
        # First, so that an unknown architecture is told as such, and before anything slow.
        AutoConfig.from_pretrained(name, **source)
        tokenizer = AutoTokenizer.from_pretrained(name, **source)
        if shape is None:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name, dtype=weights_type, output_loading_info=True, **source
            )
            model: PreTrainedModel = loaded[0]
            _check_weights(path, model, loaded[1]["missing_keys"])
        else:
            model = random_model(shape, weights_type, target)
        torch.nn.Module.to(model, target)
        return wrap_model(model, tokenizer, layers_module=layers_module, projection=projection)
    except SphereBenchError:
        raise
    except UnpicklingError as error:
        raise SphereBenchError(
            f"model.path={path}: its pickled weights hold more than tensors, and what they hold "
            "would be executed: take the model from a source that gives safetensors"
        ) from error
    # A damaged file meets a parser with exceptions of its own; what the user can do is the same.
    except Exception as error:
        raise SphereBenchError(f"model.path={path}: cannot load it: {_reason(error)}") from error


def _check_weights(path: str, model: PreTrainedModel, missing: Collection[str]) -> None:
    """Raise unless every weight came from the files (others would be random) and is finite."""
    if missing:
        raise SphereBenchError(
            f"model.path={path} lacks {len(missing)} of the model's weights, such as "
            f"{min(missing)}: get a whole copy of it"
        )
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise SphereBenchError(
                f"model.path={path}: the weight {name} is not finite: get another copy of "
                "the model, or use model.dtype=float32 or bfloat16"
            )


def random_model(
    shape: Mapping[str, Any], dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """A model of this shape, made on the device itself; its weights are the same every time.

    Raises:
        SphereBenchError: transformers knows no such shape.
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
    # What is wrong with a shape is told by exceptions of several libraries.
    except Exception as error:
        raise SphereBenchError(f"model.shape: cannot make it: {_reason(error)}") from error
    return model


def wrap_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    layers_module: str | None = None,
    projection: str | None = None,
) -> LoadedModel:
    """Make a model that is already in memory ready to be edited."""
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
    model.requires_grad_(False)
    model.eval()
    # A dequantised GGUF still calls itself quantised, which saving refuses.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
        model.hf_quantizer = None  # type: ignore[assignment]
    layout = Layout(model, layers_module, projection)
    return LoadedModel(model, tokenizer, layout, layers_return_tuples(model, layout.decoder_layers))


def resolve_device(device: str) -> torch.device:
    """The device of a configuration; ``auto`` is CUDA, else MPS, else the CPU."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    # A torch built without CUDA says so by an assertion; all else, a name it does not know or a
    # device without kernels, is a RuntimeError.
    except (RuntimeError, AssertionError) as error:
        raise SphereBenchError(
            f"device={device} is not usable here ({_reason(error)}): try device=auto or device=cpu"
        ) from error
    return resolved


def _reason(error: Exception) -> str:
    """The first sentence of an error, on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."
