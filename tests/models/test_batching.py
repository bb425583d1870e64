import pytest
import torch

from sphere_bench.errors import SphereBenchError
from sphere_bench.models.batching import (
    Budget,
    backing_off,
    launch_price,
    pad_right,
    token_batches,
)


def test_pad_right_fills_behind_the_shorter_rows() -> None:
    assert pad_right([[1, 2, 3], [4]], value=9).tolist() == [[1, 2, 3], [4, 9, 9]]


def test_token_batches_hold_every_row_once_within_the_bound() -> None:
    lengths = [3, 9, 1, 4, 4, 2, 30]
    batches = token_batches(lengths, tokens_per_batch=12)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= 12
    assert [6] in batches


def test_backing_off_halves_until_it_fits() -> None:
    tried: list[int] = []

    def work(tokens: int) -> int:
        tried.append(tokens)
        if tokens > 30:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return tokens

    assert backing_off(work, 100) == 25
    assert tried == [100, 50, 25]


def test_backing_off_names_the_mend_when_nothing_fits() -> None:
    def work(tokens: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(SphereBenchError, match=r"model\.dtype=bfloat16"):
        backing_off(work, 4)


def test_rows_of_like_length_go_together_and_few_rows_are_no_forward_of_their_own() -> None:
    lengths = [3] * 100 + [5] * 100 + [6, 7]
    batches = token_batches(lengths, tokens_per_batch=10_000)
    assert [sorted({lengths[index] for index in batch}) for batch in batches] == [[3], [5], [6, 7]]
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert padded - sum(lengths) == 1


def test_padding_in_attention_alone_is_cheaper_on_a_cpu() -> None:
    cpu, card = torch.device("cpu"), torch.device("cuda")
    assert launch_price(cpu, attention_alone=True) > launch_price(cpu)
    assert launch_price(card, attention_alone=True) == launch_price(card) > launch_price(cpu)


def test_a_group_too_large_for_one_forward_is_split_evenly() -> None:
    assert [len(batch) for batch in token_batches([4] * 9, tokens_per_batch=16)] == [3, 3, 3]


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    ],
)
def test_every_library_may_run_out_of_memory_and_what_fitted_is_remembered(message: str) -> None:
    tried = []

    def work(size: int) -> int:
        tried.append(size)
        if size > 30:
            raise RuntimeError(message)
        return size

    budget = Budget(100)
    assert [backing_off(work, budget), backing_off(work, budget)] == [25, 25]
    assert tried == [100, 50, 25, 25]


def test_another_error_is_not_tried_again() -> None:
    def work(size: int) -> int:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        backing_off(work, 8)
