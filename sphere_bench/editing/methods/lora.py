"""LoRA: low-rank factors, trained with peft on every batch and merged into the weights."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from sphere_bench.editing.batch import Batch
from sphere_bench.editing.editor import EditingSetup
from sphere_bench.editing.training import Training
from sphere_bench.errors import SphereBenchError, check_above, check_at_least, check_between
from sphere_bench.geometry.energy import as_double


class Lora:
    """LoRA (arXiv 2106.09685): dW = alpha / rank B A, with B and A trained by Adam.

    In every batch A [rank, d_in] starts from random numbers and B [d_out, rank] from zero; nothing
    else is trained. The loss is the mean NLL of a text's new target; in training the inputs of A
    go through dropout. A chunk with a loss below the threshold is left out, and the batch ends when
    an epoch's mean loss is below it.

    Args:
        setup: the run's model, weights and settings.
        rank: of each layer's update.
        alpha: scale of the update, times the rank.
        dropout: share of A's inputs that is dropped.
        steps: epochs, passes over the batch.
        learning_rate: Adam's.
        chunk: texts in one step.
        loss_threshold: of a chunk and of an epoch, nats; 0 leaves nothing out.
        end_of_text: whether EOS stands behind every target.

    Raises:
        SphereBenchError: a number is out of its range, or peft is missing.
    """

    def __init__(
        self,
        setup: EditingSetup,
        rank: int = 8,
        alpha: float = 32,
        dropout: float = 0.1,
        steps: int = 70,
        learning_rate: float = 5e-3,
        chunk: int = 1,
        loss_threshold: float = 0,
        end_of_text: bool = True,
    ) -> None:
        if not is_installed():
            raise SphereBenchError("the editor lora needs peft: pip install 'sphere-bench[lora]'")
        check_at_least("editor.method.rank", rank, 1)
        check_above("editor.method.alpha", alpha, 0)
        check_between("editor.method.dropout", dropout, 0, 1)
        check_at_least("editor.method.loss_threshold", loss_threshold, 0)
        self.training = Training(setup.loaded, steps, learning_rate, chunk, loss_threshold)
        self.model, self.layout = setup.loaded.model, setup.loaded.layout
        self.layers = setup.weights.layers
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.end_of_text = end_of_text
        self.generator = torch.Generator().manual_seed(setup.seed)

    def edit(self, batch: Batch) -> None:
        texts = self.training.texts(batch.requests, end_of_text=self.end_of_text)
        with batch.timed("update"), self._drawing(), self._factors() as factors:
            self.training.run(texts, [each for pair in factors.values() for each in pair])
        for layer, (up, down) in factors.items():
            update = as_double(up.detach()) @ as_double(down.detach())
            batch.write(layer, self.alpha / self.rank * update)

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Draw A and dropout from the editor's generator, and leave torch's own as they are."""
        seed = int(torch.randint(1 << 62, (), generator=self.generator))
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            yield

    @contextmanager
    def _factors(self) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
        """Put adapters round the edited projections for the length of the block.

        Yields:
            Each edited layer's B [d_out, rank] and A [rank, d_in], in float32.
        """
        from peft import LoraConfig, inject_adapter_in_model

        names = {layer: self.layout.projection_name(layer) for layer in self.layers}
        projections = {layer: self.layout.projection(layer) for layer in self.layers}
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # a number, whatever it says
            lora_dropout=self.dropout,
            target_modules=list(names.values()),
        )
        try:
            with warnings.catch_warnings():
                # It finds out by itself how GPT-2 stores its weights, and warns of it.
                warnings.simplefilter("ignore")
                inject_adapter_in_model(config, self.model, _ADAPTER)
            yield {layer: _trained(self.layout.projection(layer)) for layer in self.layers}
        finally:
            for layer, projection in projections.items():
                self.model.set_submodule(names[layer], projection)
            vars(self.model).pop("peft_config", None)

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.generator.set_state(state["generator"].cpu())


_ADAPTER = "lora"


def is_installed() -> bool:
    """Whether peft is there."""
    return find_spec("peft") is not None


def _trained(adapter: nn.Module) -> tuple[Tensor, Tensor]:
    """B and A of a projection with an adapter."""
    up, down = (adapter.get_parameter(f"lora_{name}.{_ADAPTER}.weight") for name in "BA")
    return up, down
