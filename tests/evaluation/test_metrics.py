"""Metrics by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sphere_bench.data.records import KINDS, NEIGHBOURHOOD, PARAPHRASE, REWRITE, PromptKind
from sphere_bench.evaluation.metrics import (
    accuracy,
    harmonic_mean,
    mean,
    mean_over_records,
    success,
)

NAN = math.nan


@pytest.mark.parametrize("kind", [REWRITE, PARAPHRASE])
def test_the_new_target_should_win_on_rewrites_and_paraphrases(kind: PromptKind) -> None:
    assert success(kind, nll_new=1.0, nll_true=2.0) == 1.0
    assert success(kind, nll_new=2.0, nll_true=1.0) == 0.0


def test_the_true_target_should_win_on_neighbours() -> None:
    assert success(NEIGHBOURHOOD, nll_new=2.0, nll_true=1.0) == 1.0
    assert success(NEIGHBOURHOOD, nll_new=1.0, nll_true=2.0) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_equal_or_nan_likelihoods_are_no_success(kind: PromptKind) -> None:
    assert success(kind, 1.0, 1.0) == 0.0
    assert success(kind, NAN, NAN) == 0.0
    assert success(kind, 1.0, NAN) == 0.0


def test_without_both_targets_there_is_no_success() -> None:
    assert math.isnan(success(REWRITE, 1.0, None))
    assert math.isnan(success(NEIGHBOURHOOD, None, 1.0))


def test_accuracy_of_all_tokens_and_of_their_share() -> None:
    assert accuracy((True, True), "all_tokens") == 1.0
    assert accuracy((True, False), "all_tokens") == 0.0
    assert accuracy((True, False, True, True), "mean_tokens") == 0.75
    assert accuracy((False,), "mean_tokens") == 0.0
    assert math.isnan(accuracy(None, "all_tokens"))


def test_means_are_taken_within_a_record_first() -> None:
    # (1 + 0) / 2 = 0.5 and 1, so 0.75; over all prompts it would be 2 / 3.
    assert mean_over_records([[1.0, 0.0], [1.0]]) == 0.75


def test_records_without_a_value_are_left_out() -> None:
    assert mean_over_records([[1.0], [], [NAN], [0.0, NAN]]) == 0.5
    assert math.isnan(mean_over_records([[], [NAN]]))
    assert math.isnan(mean([]))


def test_harmonic_mean_by_hand() -> None:
    # 3 / (1/100 + 1/50 + 1/25) = 3 / 0.07
    assert harmonic_mean([100.0, 50.0, 25.0]) == pytest.approx(3 / 0.07, rel=1e-12)
    assert harmonic_mean([100.0, 0.0, 100.0]) == 0.0
    assert math.isnan(harmonic_mean([100.0, NAN, 0.0]))
    assert math.isnan(harmonic_mean([]))


@given(st.lists(st.just(0.0) | st.floats(min_value=1e-6, max_value=100), min_size=1, max_size=5))
def test_harmonic_mean_lies_between_the_least_and_the_arithmetic_mean(values: list[float]) -> None:
    found = harmonic_mean(values)
    assert min(values) * (1 - 1e-9) <= found <= mean(values) * (1 + 1e-9)
