"""Second moments of keys that exist already, in files that the configuration names."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sphere_bench.config.identity import files_digest
from sphere_bench.editing.statistics.moment_files import (
    OWN,
    PUBLISHED,
    own_modules,
    read_own,
    read_published,
)
from sphere_bench.editing.statistics.second_moments import (
    double_device,
    key_widths,
    module_names,
)
from sphere_bench.errors import SphereBenchError
from sphere_bench.models.loading import LoadedModel

logger = logging.getLogger(__name__)


class GivenStatistics:
    """C of some layers from files, published ones or our own; no text is read.

    A published file has the name of the layer's module in its own, such as
    ``transformer.h.13.mlp.c_proj_float32_mom2_100000.npz``. Ours say which modules they are of.

    Args:
        loaded: the unedited model.
        layers: decoder layers.
        path: a file, or a folder that has one for every layer; others in it do not matter.
        wanted: number of tokens below which there is a warning.
    """

    def __init__(self, loaded: LoadedModel, layers: Sequence[int], path: str, wanted: int) -> None:
        self.loaded, self.wanted = loaded, wanted
        self.place = Path(path).expanduser()
        self._names = module_names(loaded, layers)
        self._widths = key_widths(loaded, layers)

    def second_moments(self) -> dict[int, Tensor]:
        """Layer to C [d_in, d_in], float64, on the layer's device.

        Raises:
            SphereBenchError: a layer has no file or several, or its file does not fit the model.
        """
        moments: dict[int, Tensor] = {}
        fewest: dict[int, str] = {}
        for file, layers in self._layers_by_file().items():
            try:
                found, tokens = self._read(file, layers)
            except ValueError as error:
                raise SphereBenchError(f"{_key(file)}: {error}: give another file") from error
            fewest[tokens] = file.name
            moments.update(
                {
                    layer: moment.to(double_device(self.loaded, layer))
                    for layer, moment in found.items()
                }
            )
        logger.info("key statistics of layers %s from %s", list(self._names), self.place)
        tokens = min(fewest)
        if tokens < self.wanted:
            logger.warning(
                "the key statistics in %s are of %d tokens, fewer than %d",
                fewest[tokens],
                tokens,
                self.wanted,
            )
        return {layer: moments[layer] for layer in self._names}

    def held_out_moments(self) -> dict[int, Tensor]:
        """Empty: which text the files are of is not known, so none is known to be held out."""
        return {}

    def fingerprint(self) -> dict[int, str]:
        """Layer to the SHA-256 of its file; a layer without one is left out."""
        return {layer: files_digest(files) for layer, files in self._files().items() if files}

    def _layers_by_file(self) -> dict[Path, list[int]]:
        """Every file that is read to the layers that are read from it."""
        chosen: dict[Path, list[int]] = {}
        for layer, files in self._files().items():
            if len(files) != 1:
                names = ", ".join(file.name for file in files)
                problem = f"several files hold it: {names}: name one" if files else "no file has it"
                raise SphereBenchError(
                    f"{_key(self.place)}: layer {layer} is {self._names[layer]}, and {problem}"
                )
            chosen.setdefault(files[0], []).append(layer)
        return chosen

    def _files(self) -> dict[int, list[Path]]:
        """Every layer to the files that hold it."""
        if self.place.is_dir():
            files = sorted(file for file in self.place.iterdir() if file.is_file())
        elif self.place.is_file():
            files = [self.place]
        else:
            raise SphereBenchError(f"{_key(self.place)}: no such file or folder")
        modules = {file: own_modules(file) for file in files if file.suffix == OWN}
        return {
            layer: [
                file
                for file in files
                if name in modules.get(file, ())
                or (file.suffix == PUBLISHED and _names_module(file, name))
            ]
            for layer, name in self._names.items()
        }

    def _read(self, file: Path, layers: Sequence[int]) -> tuple[dict[int, Tensor], int]:
        """C of ``layers`` and the number of tokens.

        Raises:
            ValueError: the file is damaged or does not fit.
        """
        if file.suffix == OWN:
            own, tokens = read_own(file)
            there = own_modules(file)
            found = {layer: own[there[self._names[layer]]] for layer in layers}
        else:
            moment, tokens = read_published(file)
            found = dict.fromkeys(layers, moment)
        for layer, moment in found.items():
            width = self._widths[layer]
            if moment.shape != (width, width):
                raise ValueError(
                    f"its matrix is {list(moment.shape)}, but keys of layer {layer} have {width} "
                    "dimensions"
                )
            if not torch.isfinite(moment).all():
                raise ValueError("its numbers are not all finite")
        return found, tokens


def _names_module(file: Path, name: str) -> bool:
    return re.search(rf"(?<![a-zA-Z0-9.]){re.escape(name)}(?![a-zA-Z0-9.])", file.stem) is not None


def _key(place: Path) -> str:
    return f"statistics.path={place}"
