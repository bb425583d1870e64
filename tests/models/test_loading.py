import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sphere_bench.errors import SphereBenchError
from sphere_bench.models import loading
from sphere_bench.models.loading import load_model, wrap_model
from tests.tiny_models import TOKENIZER, VOCABULARY, tiny_model

SHAPE = {
    "model_type": "llama",
    "vocab_size": 3000,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def test_a_shape_gives_the_same_random_model_every_time_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    loaded = load_model("bundled", dtype="bfloat16", device="cpu", shape=SHAPE)
    assert torch.equal(torch.rand(3), expected)
    assert loaded.layout.weight(2).shape == (16, 24)
    assert loaded.dtype == loaded.layout.head.weight.dtype == torch.bfloat16
    assert loaded.tokenizer("The head office")["input_ids"]
    again = load_model("bundled", dtype="bfloat16", device="cpu", shape=SHAPE)
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, again.model.get_parameter(name))


def test_a_model_brings_its_precision_of_products_and_the_next_one_its_own() -> None:
    load_model("bundled", device="cpu", shape=SHAPE, matmul_precision="high")
    assert torch.get_float32_matmul_precision() == "high"
    load_model("bundled", device="cpu", shape=SHAPE)
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_sharded_model_is_one_process_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SphereBenchError, match=r"^device=sharded is not usable here \(.*CUDA"):
        load_model("bundled", device="sharded")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SphereBenchError, match=r"and tensor parallelism is not there: start it"):
        load_model("bundled", device="sharded")


def test_where_the_layers_go_is_left_to_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "resolve_device", lambda device: torch.device("cpu"))
    maps = []
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda *given, device_map, **named: maps.append(device_map) or load(*given, **named),
    )
    loaded = load_model("bundled", device="sharded")
    assert maps == ["auto"]
    meta = torch.nn.Parameter(torch.empty(1, device="meta"), requires_grad=False)
    loaded.model.register_parameter("too_much", meta)
    with pytest.raises(SphereBenchError, match="no room for too_much and more: use more of them"):
        loading._check_weights("bundled", loaded.model, [])
    with pytest.raises(SphereBenchError, match=r"^model\.shape: random weights are drawn on one"):
        load_model("bundled", device="sharded", shape=SHAPE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, "Unrecognized model identifier: lama"),
        ({"model_type": "vit", "num_key_value_heads": 1}, "vit has no vocab_size"),
        ({"hiden_size": 16}, "llama has no hiden_size"),
        ({"num_attention_heads": 5}, "not a multiple of the number of attention heads"),
    ],
)
def test_a_wrong_shape_is_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(SphereBenchError, match=rf"^model\.shape: cannot make it: .*{message}"):
        load_model("bundled", device="cpu", shape={**SHAPE, **change})


@pytest.mark.parametrize(("maker", "shape"), [("from_pretrained", None), ("from_config", SHAPE)])
def test_memory_that_runs_out_is_no_mistake_in_the_model(
    maker: str, shape: dict[str, object] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*given: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.53 GiB.")

    monkeypatch.setattr(AutoModelForCausalLM, maker, no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        load_model("bundled", device="cpu", shape=shape)


@pytest.mark.parametrize("path", ["models/smolm-typo", "gpt2-typo"])
def test_a_mistyped_relative_path_is_neither_a_folder_nor_on_the_hub(path: str) -> None:
    problem = (
        rf"^model\.path={path}: there is no such folder, and the Hugging Face hub did not give"
    )
    with pytest.raises(SphereBenchError, match=problem) as caught:
        load_model(path, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["", "a/b/c", "models/", "./typo", "/typo", "typo.gguf", "a b"])
def test_what_can_be_no_hub_name_is_a_folder_that_is_missing(path: str) -> None:
    with pytest.raises(SphereBenchError, match=r"no model folder or \.gguf file there"):
        load_model(path, device="cpu")


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused() -> None:
    with pytest.raises(
        SphereBenchError,
        match=r"its tokenizer has the token .*, the embedding of Llama.* 0 to 99: ",
    ):
        load_model("bundled", device="cpu", shape={**SHAPE, "vocab_size": 100})


def test_a_special_token_that_no_text_has_needs_no_row() -> None:
    model = tiny_model("llama").model
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_tokens([f"<filler {index}>" for index in range(VOCABULARY - len(tokenizer))])
    tokenizer.add_special_tokens({"pad_token": "<never used>"})
    assert tokenizer.pad_token_id == VOCABULARY
    assert wrap_model(model, tokenizer).tokenizer is tokenizer
    tokenizer.add_tokens(["used"])
    with pytest.raises(SphereBenchError, match=f"has the token {VOCABULARY + 1}, the embedding"):
        wrap_model(model, tokenizer)
