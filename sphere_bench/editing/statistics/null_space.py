"""How well a null space holds on text that it was not taken from."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sphere_bench.geometry.subspace import energy_share

logger = logging.getLogger(__name__)

# With so much more energy on held-out text than on its own, a null space is of too few tokens.
_TOO_MUCH = 2.0


def energy_shares(bases: Mapping[int, Tensor], moments: Mapping[int, Tensor]) -> dict[int, float]:
    """The share of the keys' energy in each layer's null space, for the layers that have both.

    Args:
        bases: layer to V [d_in, m].
        moments: layer to C [d_in, d_in] of the keys.
    """
    return {
        layer: energy_share(bases[layer], moment)
        for layer, moment in moments.items()
        if layer in bases
    }


def compare_energies(
    bases: Mapping[int, Tensor], own: Mapping[int, float], held_out: Mapping[int, float]
) -> dict[str, dict[str, Any]]:
    """Log the energy in each layer's null space, and warn where held-out text has far more of it.

    Args:
        bases: layer to V [d_in, m].
        own: layer to the share on the text that the null space is taken from.
        held_out: the same on other text; empty where there is none.

    Returns:
        Layer to ``directions``, ``own`` and ``held_out``, as plain values; a share that is not
        known is ``None``.
    """
    for layer, basis in bases.items():
        logger.info(
            "null space of layer %d: %d of %d directions, with %.1f %% of the keys' energy on the "
            "text that it is from, %s on held-out text",
            layer,
            basis.shape[1],
            basis.shape[0],
            100 * own[layer],
            f"{100 * held_out[layer]:.1f} %" if layer in held_out else "not measured",
        )
    weak = [layer for layer, share in held_out.items() if share > _TOO_MUCH * own[layer]]
    if weak:
        logger.warning(
            "the null space of layer%s %s has more than twice the energy on held-out text (%s): "
            "raise statistics.tokens",
            "s" if len(weak) > 1 else "",
            ", ".join(map(str, weak)),
            ", ".join(f"{100 * own[each]:.1f} -> {100 * held_out[each]:.1f} %" for each in weak),
        )
    return {
        str(layer): {
            "directions": basis.shape[1],
            "own": own[layer],
            "held_out": held_out.get(layer),
        }
        for layer, basis in bases.items()
    }
