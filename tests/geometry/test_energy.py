import json
import math

import numpy as np
import pytest
import torch

from sphere_bench.geometry.energy import row_geometry, unit_rows

MODELS = ("tiny-llama", "tiny-gpt2")


def plain_energy(weight: torch.Tensor, exponent: float, eps: float) -> float:
    """The definition, one pair at a time."""
    rows = weight.double()
    rows = rows / rows.norm(dim=1, keepdim=True)
    total = 0.0
    for i, left in enumerate(rows):
        for j, right in enumerate(rows):
            if i != j:
                total += ((left - right).square().sum().item() + eps) ** -exponent
    return total


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("state", ["w0", "memit_b2"])
def test_energy_equals_the_published_sets_figures(
    golden_folder, golden_weight, name, layer, exponent, state
):
    figures = json.loads((golden_folder / name / "published.json").read_text())
    weight = golden_weight(name, layer)
    if state != "w0":
        weight = weight + torch.from_numpy(
            np.load(golden_folder / name / "published.npz")[f"{state}_{layer}"]
        )
    expected = figures[f"he_{state}_{layer}_exponent{exponent}"]
    # float32 rounding of W + dW is all that may differ.
    assert row_geometry(weight, exponent).energy == pytest.approx(expected, rel=1e-6)


def test_energy_of_two_orthogonal_rows():
    # ||x_1 - x_2||^2 = 1 + 1 = 2 whatever the rows' lengths; two ordered pairs of 1 / (2 + eps).
    weight = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    assert row_geometry(weight, exponent=1, eps=1e-6).energy == pytest.approx(
        2 / (2 + 1e-6), rel=1e-14
    )
    geometry = row_geometry(weight, exponent=2, eps=0.5)
    assert geometry.energy == pytest.approx(2 * 2.5**-2, rel=1e-14)
    assert geometry.energy_normalized == pytest.approx(2.5**-2, rel=1e-14)  # n(n-1) = 2
    assert geometry.cos_mean == geometry.cos_p01 == geometry.cos_p99 == 0


def test_energy_of_antipodal_rows():
    # ||x - (-x)||^2 = 4; cosine -1.
    geometry = row_geometry(torch.tensor([[1.0, 1.0], [-2.0, -2.0]]), exponent=0.5, eps=1e-6)
    assert geometry.energy == pytest.approx(2 * (4 + 1e-6) ** -0.5, rel=1e-14)
    assert geometry.cos_mean == pytest.approx(-1, abs=1e-15)
    assert geometry.cos_std == pytest.approx(0, abs=1e-7)


def test_energy_of_equal_rows_is_bounded_by_eps():
    # Distance 0, so each of the 3 * 2 ordered pairs contributes 1 / eps.
    weight = torch.tensor([[0.1, 0.7, -0.3]]).repeat(3, 1) * torch.tensor([[1.0], [2.0], [5.0]])
    assert row_geometry(weight, eps=1e-3).energy == pytest.approx(6000, rel=1e-9)
    assert row_geometry(weight).cos_p99 == pytest.approx(1)


def test_a_zero_row_stays_at_the_origin():
    # Pairs: the zero rows are 0 apart (2 ordered pairs of 1/eps), each is 1 from the unit row
    # (4 ordered pairs of 1/(1 + eps)); cosines are 0 throughout.
    weight = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 4.0]])
    geometry = row_geometry(weight, eps=0.25)
    assert geometry.energy == pytest.approx(2 / 0.25 + 4 / 1.25, rel=1e-14)
    assert geometry[2:] == (0, 0, 0, 0)
    assert torch.equal(unit_rows(weight)[:2], torch.zeros(2, 2, dtype=torch.float64))


def test_fewer_than_two_rows_have_no_energy():
    geometry = row_geometry(torch.ones(1, 3))
    assert geometry.energy == 0
    assert all(math.isnan(value) for value in geometry[1:])


@pytest.mark.parametrize("exponent", [0.3, 0.5, 1, 2, 3.5])
def test_energy_equals_the_definition_pair_by_pair(exponent):
    weight = torch.randn(23, 7, generator=torch.Generator().manual_seed(0))
    expected = plain_energy(weight, exponent, 1e-4)
    assert row_geometry(weight, exponent, 1e-4).energy == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("block_rows", [1, 5, 22, 23, 100])
def test_energy_and_angles_do_not_depend_on_the_blocks(block_rows):
    weight = torch.randn(23, 7, generator=torch.Generator().manual_seed(1))
    assert row_geometry(weight, block_rows=block_rows) == pytest.approx(
        row_geometry(weight, block_rows=23), rel=1e-12
    )


def test_energy_sees_no_scale_of_rows_and_no_rotation():
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64)).Q
    scales = torch.rand(40, 1, generator=generator, dtype=torch.float64) * 1e3 + 1e-3
    assert row_geometry((weight * scales) @ rotation).energy == pytest.approx(
        row_geometry(weight).energy, rel=1e-12
    )


def test_a_change_of_one_entry_in_a_million_is_resolved():
    # A relative change of the energy near 1e-9, against the same change computed pair by pair.
    weight = torch.randn(60, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    changed = weight.clone()
    changed[7, 3] += 1e-6
    difference = row_geometry(changed).energy - row_geometry(weight).energy
    expected = plain_energy(changed, 1, 1e-6) - plain_energy(weight, 1, 1e-6)
    assert abs(expected) < 1e-6 * row_geometry(weight).energy
    assert difference == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("rows", [2, 3, 9, 120])
def test_angles_equal_numpys_over_all_pairs(rows):
    weight = torch.randn(rows, 11, generator=torch.Generator().manual_seed(rows))
    unit = weight.double().numpy() / np.linalg.norm(weight.double().numpy(), axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(rows, 1)]
    geometry = row_geometry(weight)
    expected = [cosines.mean(), cosines.std(), *np.percentile(cosines, [1, 99])]
    assert geometry[2:] == pytest.approx(expected, abs=1e-7)


def test_a_weight_that_is_not_finite_gives_nan_instead_of_an_error():
    weight = torch.randn(6, 4)
    weight[2, 1] = math.inf
    assert math.isnan(row_geometry(weight).energy)


def test_low_precision_weights_are_measured_in_double():
    weight = torch.randn(30, 9, generator=torch.Generator().manual_seed(4)).bfloat16()
    assert row_geometry(weight) == row_geometry(weight.double())
