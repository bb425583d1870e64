"""Train the bundled tiny GPT-2 and write all of `sphere_bench/assets`.

    python scripts/train_tiny_gpt2.py

Everything is seeded; minutes on two CPU cores. `--world-only` writes the facts and the corpus
without training.
"""

import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny_tables import COMMON_OBJECTS, LEAD_INS, RELATIONS
from tiny_world import (
    World,
    build_world,
    corpus_text,
    counterfact_records,
    qaedit_records,
    snippet_records,
    to_json,
    training_texts,
    zsre_records,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END = "<|endoftext|>"
VOCABULARY = 2500
BATCH = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.1
HOLD_LAYER = 2
ASSETS = Path(__file__).resolve().parents[1] / "sphere_bench" / "assets"


def train_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A byte-level BPE that keeps common words whole and cuts invented names into syllables."""
    common = [text.format("") for relation in RELATIONS for text in relation.statements]
    common += [text.format("") for relation in RELATIONS for text in relation.questions]
    common += [*LEAD_INS, *(f" {words}" for words in COMMON_OBJECTS.values())]
    common += [f" is a {kind}. nq question:" for kind in ("person", "town", "work", "company")]
    common += [word for fact in world.facts for word in fact.subject.split()]
    common += [f" {fact.subject}" for fact in world.facts]
    invented = [f" {name}" for names in world.objects.values() for name in names]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*(common * 5), *invented], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=128,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """The untrained model: 6 layers, width 128, head tied to the embedding."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=128,
        n_embd=128,
        n_layer=6,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config)
    # With GPT-2's small embeddings the first MLP sets the scale of the residual stream, alone
    # looks all facts up, and the later layers' writes are negligible: an edit of those would have
    # to be many times the weight. With embeddings of the stream's own scale all layers share the
    # work. The final norm's gain makes up for it in the tied head.
    with torch.no_grad():
        model.transformer.wte.weight.normal_()
        model.transformer.wpe.weight.normal_(std=0.2)
        model.transformer.ln_f.weight.fill_(0.1)
    return model


@dataclass(frozen=True)
class Sample:
    """A tokenized text; the token spans of its facts' subjects, and which objects they have."""

    ids: list[int]
    subjects: list[tuple[int, int]]
    objects: list[int]


def batches(
    tokenizer: PreTrainedTokenizerFast, world: World, steps: int, seed: int
) -> list[list[Sample]]:
    """`steps` batches; texts of like length share one, to save padding."""
    texts = list(training_texts(world, steps * BATCH, seed))
    encodings = tokenizer([text.text for text in texts])
    index = {name: place for place, name in enumerate(object_names(world))}
    samples = []
    for row, text in enumerate(texts):
        spans = []
        for fact in text.facts:
            start = text.text.index(fact.subject)
            end = start + len(fact.subject) - 1
            spans.append((encodings.char_to_token(row, start), encodings.char_to_token(row, end)))
        samples.append(
            Sample(
                [*encodings["input_ids"][row], tokenizer.eos_token_id],
                spans,
                [index[fact.target] for fact in text.facts],
            )
        )
    rng = random.Random(seed)
    window = 16 * BATCH
    result = []
    for start in range(0, len(samples), window):
        rows = sorted(samples[start : start + window], key=lambda sample: len(sample.ids))
        cut = [rows[first : first + BATCH] for first in range(0, len(rows), BATCH)]
        rng.shuffle(cut)
        result.extend(cut)
    return result


def object_names(world: World) -> list[str]:
    """All objects of the world."""
    return [name for names in world.objects.values() for name in names]


def attention_mask(rows: list[Sample], width: int, at_last_token_only: bool) -> torch.Tensor:
    """An additive causal mask [b, 1, t, t].

    With `at_last_token_only`, what follows a subject sees no token of it but the last one.
    """
    seen = torch.ones(len(rows), width, width, dtype=torch.bool).tril()
    if at_last_token_only:
        for place, row in enumerate(rows):
            for first, last in row.subjects:
                seen[place, last + 1 :, first:last] = False
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]


def train(model: GPT2LMHeadModel, data: list[list[Sample]], object_count: int) -> None:
    """AdamW with warmup and a cosine to a tenth.

    Left to itself a model this small looks a fact up late, at the last token of the prompt, from
    the single words of the subject: no editor that writes at the subject can reach it there.
    Two things make it hold facts at the subject's last token. A linear probe, thrown away
    afterwards, is trained along to read the object off the state of layer `HOLD_LAYER` there;
    and in half of the batches the words after a subject see only its last token.
    """
    probe = torch.nn.Linear(model.config.n_embd, object_count)
    parameters = [*model.parameters(), *probe.parameters()]
    embeddings = (model.transformer.wte.weight, model.transformer.wpe.weight)
    decayed = [p for p in parameters if p.ndim > 1 and all(p is not e for e in embeddings)]
    others = [p for p in parameters if all(p is not d for d in decayed)]
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98))
    warmup = max(1, len(data) // 20)

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, len(data) - warmup)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * done))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    started = time.perf_counter()
    for step, rows in enumerate(data):
        lengths = torch.tensor([len(row.ids) for row in rows])
        ids = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row.ids) for row in rows], batch_first=True, padding_value=0
        )
        mask = attention_mask(rows, ids.shape[1], at_last_token_only=step % 2 == 0)
        output = model(ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
        inside = torch.arange(ids.shape[1]) < lengths[:, None]
        labels = ids.masked_fill(~inside, -100)[:, 1:]
        loss = torch.nn.functional.cross_entropy(
            output.logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100
        )
        row_of = torch.tensor([place for place, row in enumerate(rows) for _ in row.subjects])
        end = torch.tensor([last for row in rows for _, last in row.subjects])
        held = output.hidden_states[HOLD_LAYER + 1][row_of, end]
        told = torch.tensor([name for row in rows for name in row.objects])
        probe_loss = torch.nn.functional.cross_entropy(probe(held), told)
        optimizer.zero_grad()
        (loss + probe_loss).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        if step % 100 == 0:
            losses = f"loss {loss.item():.3f}  probe {probe_loss.item():.3f}"
            print(f"step {step:5d}  {losses}  {time.perf_counter() - started:6.1f} s", flush=True)
    model.eval()


@torch.no_grad()
def accuracy(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]
) -> float:
    """Share of (prompt, target) pairs whose every target token is the argmax."""
    right = 0
    for start in range(0, len(pairs), 256):
        chunk = pairs[start : start + 256]
        prompts = [tokenizer(prompt)["input_ids"] for prompt, _ in chunk]
        targets = [tokenizer(f" {target}")["input_ids"] for _, target in chunk]
        width = max(len(p) + len(t) for p, t in zip(prompts, targets, strict=True))
        ids = torch.zeros(len(chunk), width, dtype=torch.long)
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            ids[row, : len(prompt) + len(target)] = torch.tensor(prompt + target)
        # In a causal model no token of a row looks at the padding on its right.
        best = model(ids, attention_mask=torch.ones_like(ids)).logits.argmax(-1)
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            said = best[row, len(prompt) - 1 : len(prompt) + len(target) - 1]
            right += said.tolist() == target
    return right / len(pairs)


def write_world(out: Path, world: World) -> None:
    """Write the facts in all formats, the corpus and the snippets."""
    out.mkdir(parents=True, exist_ok=True)
    files = {
        "counterfact.json": to_json(counterfact_records(world)),
        "zsre.json": to_json(zsre_records(world)),
        "qaedit.json": to_json(qaedit_records(world)),
        "snippets.json": to_json(snippet_records(world)),
        "corpus.txt": corpus_text(world),
    }
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")


def write_model(
    folder: Path, model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast
) -> GPT2LMHeadModel:
    """Write the model with its weights in half precision; return it as it is read back.

    The configuration says float32, so that `from_pretrained` gives a float32 model by default:
    half precision only saves disk.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = folder / "model.safetensors"
    save_file({k: v.half() for k, v in load_file(weights).items()}, weights, {"format": "pt"})
    weights.chmod(0o644)
    # transformers 5 writes a class name of its own, which version 4 cannot load.
    settings = folder / "tokenizer_config.json"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text.replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    return GPT2LMHeadModel.from_pretrained(folder)


def report(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, world: World
) -> dict[str, float]:
    """What the model knows: seen and held-out pairs of fact and template, and the data's own."""
    facts = world.facts
    pairs = {
        "seen statements": [(t.format(f.subject), f.target) for f in facts for t in f.seen],
        "held-out statements": [(t.format(f.subject), f.target) for f in facts for t in f.unseen],
        "seen questions": [(f.question, f.target) for f in facts],
        "held-out questions": [(f.unseen_question, f.target) for f in facts],
        "CounterFact paraphrases": [
            (prompt, record["requested_rewrite"]["target_true"]["str"])
            for record in counterfact_records(world)
            for prompt in record["paraphrase_prompts"]
        ],
        "ZsRE unrelated": [(r["loc"], r["loc_ans"]) for r in zsre_records(world)],
        "ZsRE unrelated, with ?": [(r["loc"] + "?", r["loc_ans"]) for r in zsre_records(world)],
    }
    return {name: accuracy(model, tokenizer, some) for name, some in pairs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder of the assets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200, help=f"batches of {BATCH} texts")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--world-only", action="store_true", help="write no model")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    world = build_world(arguments.seed)
    write_world(arguments.out, world)
    if arguments.world_only:
        return
    started = time.perf_counter()
    tokenizer = train_tokenizer(world)
    model = build_model(tokenizer)
    data = batches(tokenizer, world, arguments.steps, arguments.seed + 4)
    train(model, data, len(object_names(world)))
    print(f"trained {model.num_parameters():,} parameters in {time.perf_counter() - started:.0f} s")
    model = write_model(arguments.out / "tiny-gpt2", model, tokenizer)
    for name, share in report(model, tokenizer, world).items():
        print(f"{name:24s} {100 * share:6.2f} %")


if __name__ == "__main__":
    main()
