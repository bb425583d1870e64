"""Where a causal decoder keeps what editing needs, and one orientation for its weights."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sphere_bench.errors import SphereBenchError

# The MLP's down projection inside a decoder layer, by the names that transformers uses:
# Llama, Mistral, Qwen, Gemma; GPT-2; GPT-J; Phi.
PROJECTION_NAMES = ("mlp.down_proj", "mlp.c_proj", "mlp.fc_out", "mlp.fc2")


class Layout:
    """The decoder layers, the edited projection of each, and the head of a causal decoder.

    Every weight goes in and out as [out, in]; this class alone knows that GPT-2's ``Conv1D``
    stores its own as [in, out].

    Args:
        model: a causal language model of transformers.
        layers_module: dotted name of the list of decoder layers, found when ``None``.
        projection: dotted name of the down projection inside a layer, found when ``None``.

    Raises:
        SphereBenchError: the layers or the projection are not where they are looked for.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers_module: str | None = None,
        projection: str | None = None,
    ) -> None:
        self.decoder_layers = _decoder_layers(model, layers_module)
        head = model.get_output_embeddings()
        if head is None:
            raise SphereBenchError(
                f"{type(model).__name__} has no language-model head: model.path must be a causal "
                "language model"
            )
        self.head: nn.Module = head
        self._projection_name = _projection_name(model, self.decoder_layers[0], projection)
        width = model.config.get_text_config().hidden_size
        if self.weight(0).shape[0] != width:
            raise SphereBenchError(
                f"model.modules.projection={self._projection_name}: its output has "
                f"{self.weight(0).shape[0]} numbers, not the hidden states' {width}: name the "
                "MLP's down projection"
            )
        names = {id(module): name for name, module in model.named_modules()}
        self._layer_names = [names[id(layer)] for layer in self.decoder_layers]

    def __len__(self) -> int:
        return len(self.decoder_layers)

    def projection(self, layer: int) -> nn.Module:
        """The MLP's down projection of decoder layer ``layer``."""
        return self.decoder_layers[layer].get_submodule(self._projection_name)

    def weight(self, layer: int) -> Tensor:
        """The projection's weight as an [out, in] view of its storage."""
        module = self.projection(layer)
        weight: Tensor = module.weight.data  # type: ignore[assignment]
        return weight.T if isinstance(module, Conv1D) else weight

    def write(self, layer: int, weight: Tensor) -> None:
        """Put ``weight`` [out, in] into the model, rounded to the model's own dtype."""
        self.weight(layer).copy_(weight)

    def parameters(self, weights: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """``weights`` (layer to [out, in]) as ``torch.func.functional_call`` takes them."""
        return {
            f"{self._layer_names[layer]}.{self._projection_name}.weight": (
                weight.T if isinstance(self.projection(layer), Conv1D) else weight
            ).to(self.weight(layer).dtype)
            for layer, weight in weights.items()
        }

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raise unless every number of ``layers`` names a decoder layer."""
        if any(not 0 <= layer < len(self) for layer in layers):
            raise SphereBenchError(
                f"editor.layers={list(layers)}: the model has layers 0 to {len(self) - 1}"
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


def _projection_name(model: PreTrainedModel, layer: nn.Module, name: str | None) -> str:
    for candidate in (name,) if name else PROJECTION_NAMES:
        try:
            module = layer.get_submodule(candidate)
        except AttributeError:
            continue
        if isinstance(module, nn.Linear | Conv1D):
            return candidate
    tried = name or ", ".join(PROJECTION_NAMES)
    raise SphereBenchError(
        f"unknown layout of {type(model).__name__}: no linear module {tried} in a decoder layer; "
        "set model.modules.projection to the dotted name of the MLP's down projection"
    )


def layers_return_tuples(model: PreTrainedModel, layers: nn.ModuleList) -> bool:
    """Whether a decoder layer returns a tuple (GPT-J) or the hidden states alone (the others)."""
    seen: list[bool] = []
    handle = layers[0].register_forward_hook(
        lambda _module, _inputs, output: seen.append(isinstance(output, tuple))
    )
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            model.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device))
    finally:
        handle.remove()
    return seen[0]
