"""Finds the modules of a causal decoder that editing needs, and gives weights one orientation."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sphere_bench.errors import SphereBenchError

# The MLP's down projection inside a decoder layer, by the names that transformers uses:
# Llama, Mistral, Qwen, Gemma; GPT-2; GPT-J; Phi; GPT-NeoX, BLOOM, Falcon; OPT; MPT.
PROJECTION_NAMES = (
    "mlp.down_proj",
    "mlp.c_proj",
    "mlp.fc_out",
    "mlp.fc2",
    "mlp.dense_4h_to_h",
    "fc2",
    "ffn.down_proj",
)
# Layers of these types have keys and values of every token, or of the last ones.
ATTENTION_TYPES = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
# The number of experts of a layer, by the names that transformers uses.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


class Layout:
    """The decoder layers, the edited projection of each, and the head of a causal decoder.

    Every weight is read and written as [out, in]. Only this class knows that ``Conv1D`` of GPT-2
    stores it as [in, out].

    Args:
        model: a causal language model of transformers.
        layers_module: dotted name of the list of decoder layers; ``None`` searches for it.
        projection: dotted name of the down projection inside a layer; ``None`` searches for it.

    Raises:
        SphereBenchError: the layers or the projection are not found, or the model has layers that
            cannot be edited.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers_module: str | None = None,
        projection: str | None = None,
    ) -> None:
        _check_architecture(model)
        self.decoder_layers = _decoder_layers(model, layers_module)
        head = model.get_output_embeddings()
        if head is None:
            raise SphereBenchError(
                f"{type(model).__name__} has no language-model head: model.path must be a causal "
                "language model"
            )
        self.head: nn.Module = head
        self._projection_name = _projection_name(model, self.decoder_layers, projection)
        width = model.config.get_text_config().hidden_size
        if self.weight(0).shape[0] != width:
            raise SphereBenchError(
                f"model.modules.projection={self._projection_name}: its output has "
                f"{self.weight(0).shape[0]} numbers, not the hidden states' {width}: name the "
                "MLP's down projection"
            )
        names = {id(module): name for name, module in model.named_modules()}
        self._layer_names = [names[id(layer)] for layer in self.decoder_layers]
        #: Layers that were written since another process was told of it.
        self.written: set[int] = set()

    def __len__(self) -> int:
        return len(self.decoder_layers)

    def projection(self, layer: int) -> nn.Module:
        """The MLP's down projection of decoder layer ``layer``."""
        return self.decoder_layers[layer].get_submodule(self._projection_name)

    def projection_name(self, layer: int) -> str:
        """The dotted name of that projection in the model."""
        return f"{self._layer_names[layer]}.{self._projection_name}"

    def weight(self, layer: int) -> Tensor:
        """The projection's weight as an [out, in] view of its storage."""
        module = self.projection(layer)
        weight: Tensor = module.weight.data  # type: ignore[assignment]
        return weight.T if isinstance(module, Conv1D) else weight

    def write(self, layer: int, weight: Tensor) -> None:
        """Write ``weight`` [out, in] into the model, rounded to the model's dtype."""
        self.weight(layer).copy_(weight)
        self.written.add(layer)

    def parameters(self, weights: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """``weights`` (layer to [out, in]) in the form of ``torch.func.functional_call``."""
        return {
            f"{self.projection_name(layer)}.weight": (
                weight.T if isinstance(self.projection(layer), Conv1D) else weight
            ).to(self.weight(layer).dtype)
            for layer, weight in weights.items()
        }

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raise unless every number in ``layers`` is that of a decoder layer."""
        if any(not 0 <= layer < len(self) for layer in layers):
            raise SphereBenchError(
                f"editor.layers={list(layers)}: the model has layers 0 to {len(self) - 1}: set "
                "model.layers, or those of this editor alone"
            )


def _check_architecture(model: PreTrainedModel) -> None:
    """Raise unless every layer attends to keys and values and has one MLP.

    Target values are optimised with cached keys and values, and a fact is written into the one MLP
    that all tokens go through.
    """
    config = model.config.get_text_config()
    if any((getattr(config, name, None) or 0) > 1 for name in EXPERTS):
        raise SphereBenchError(
            f"{type(model).__name__} is a mixture of experts, which cannot be edited: no layer has "
            "one down projection for all tokens; use a model without experts"
        )
    types = set(getattr(config, "layer_types", None) or ())
    if model._is_stateful or not types <= ATTENTION_TYPES:
        raise SphereBenchError(
            f"{type(model).__name__} is no transformer throughout, so it cannot be edited: some of "
            "its layers keep a state instead of keys and values; use a model with attention in "
            "every layer"
        )


def _decoder_layers(model: PreTrainedModel, name: str | None) -> nn.ModuleList:
    if name is not None:
        try:
            found = [model.get_submodule(name)]
        except AttributeError:
            found = []
    else:
        depth = getattr(model.config, "num_hidden_layers", None)
        found = [
            module
            for module in model.base_model.modules()
            if isinstance(module, nn.ModuleList) and len(module) == depth
        ]
    if len(found) != 1 or not isinstance(found[0], nn.ModuleList):
        where = f"'{name}' is not a list of layers" if name else "no list of decoder layers found"
        raise SphereBenchError(
            f"unknown layout of {type(model).__name__}: {where}; set model.modules.layers to the "
            "dotted name of its decoder layers"
        )
    return found[0]


def _projection_name(model: PreTrainedModel, layers: nn.ModuleList, name: str | None) -> str:
    """The dotted name of the down projection, which every layer must have."""
    candidates = (name,) if name else PROJECTION_NAMES
    found = next((each for each in candidates if _has_linear(layers[0], each)), None)
    missing = [
        index
        for index, layer in enumerate(layers)
        if found is None or not _has_linear(layer, found)
    ]
    if found is None or missing:
        raise SphereBenchError(
            f"unknown layout of {type(model).__name__}: no linear module "
            f"{found or ', '.join(candidates)} in decoder layer {missing[0]}; set "
            "model.modules.projection to the dotted name of the MLP's down projection"
        )
    return found


def _has_linear(layer: nn.Module, name: str) -> bool:
    try:
        return isinstance(layer.get_submodule(name), nn.Linear | Conv1D)
    except AttributeError:
        return False


class LayerBehaviour(NamedTuple):
    """How a decoder layer passes tensors on, which differs between architectures.

    Attributes:
        return_tuples: it returns a tuple (GPT-J) instead of the hidden states alone (most others).
        flatten: its MLP works on [batch * tokens, width] (OPT) instead of [batch, tokens, width].
    """

    return_tuples: bool
    flatten: bool


def observe_layers(model: PreTrainedModel, layout: Layout) -> LayerBehaviour:
    """What the first decoder layer does in a forward of one token."""
    return_tuples: list[bool] = []
    dimensions: list[int] = []
    handles = [
        layout.decoder_layers[0].register_forward_hook(
            lambda _module, _inputs, output: return_tuples.append(isinstance(output, tuple))
        ),
        layout.projection(0).register_forward_pre_hook(
            lambda _module, inputs: dimensions.append(inputs[0].dim())
        ),
    ]
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            model.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return LayerBehaviour(return_tuples[0], dimensions[0] == 2)
