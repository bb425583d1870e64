"""A procedurally generated world of invented facts, for the bundled tiny GPT-2.

Twelve relations with 125 facts each. No subject has two facts and every object of a relation is
shared by a dozen subjects, so a fact has true neighbours in CounterFact's sense. Every relation
has six statement templates and two questions. A fact is shown to the model with four of its
statements and one of its questions only; which ones are held out differs from fact to fact, so
that the model knows every template and a held-out pair can be answered only by a fact that is
stored with its subject.

Everything is a function of the seed and needs the standard library alone.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tiny_tables import (
    CODAS,
    COMMON_OBJECTS,
    FIRST_WORDS,
    LAST_WORDS,
    LEAD_INS,
    ONSETS,
    RELATIONS,
    Relation,
)

FACTS_PER_RELATION = 125
OBJECTS_PER_RELATION = 10
HELD_OUT_STATEMENTS = 2
NEIGHBOURS = 10
ATTRIBUTES = 5
ZSRE_RECORDS = 600
QAEDIT_RECORDS = 300
UNRELATED_QUESTIONS = 3
CORPUS_LINES = 2500


@dataclass(frozen=True)
class Fact:
    """One fact and the templates it is never shown with (indices into its relation's)."""

    relation: Relation
    subject: str
    target: str
    held_out: tuple[int, ...]
    held_out_question: int

    @property
    def seen(self) -> list[str]:
        """The statement templates that the model sees this fact with."""
        statements = self.relation.statements
        return [text for index, text in enumerate(statements) if index not in self.held_out]

    @property
    def unseen(self) -> list[str]:
        """The statement templates that are held out for this fact."""
        return [self.relation.statements[index] for index in self.held_out]

    @property
    def question(self) -> str:
        """The question that the model sees, with the subject filled in."""
        return self.relation.questions[1 - self.held_out_question].format(self.subject)

    @property
    def unseen_question(self) -> str:
        """The question that is held out for this fact, with the subject filled in."""
        return self.relation.questions[self.held_out_question].format(self.subject)


@dataclass(frozen=True)
class World:
    """All facts, relation by relation, and the objects that each relation chooses from."""

    seed: int
    facts: tuple[Fact, ...]
    objects: dict[str, tuple[str, ...]]


class _Names:
    """Invents words, none of which contains another or a longer word of the templates."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        texts = [*LEAD_INS, *COMMON_OBJECTS.values()]
        for relation in RELATIONS:
            texts += [*relation.statements, *relation.questions]
        # Short words would forbid too much, and case tells them from a name.
        self._taken = {word for word in " ".join(texts).lower().split() if len(word) > 3}

    def word(self, syllables: int, ending: str = "") -> str:
        """A new capitalised word of that many syllables before `ending`."""
        choice = self._rng.choice
        while True:
            parts = [choice(ONSETS.split()) + choice("aeiou") for _ in range(syllables)]
            word = "".join(parts) + (ending or choice(CODAS))
            if len(word) >= 5 and not any(word in old or old in word for old in self._taken):
                self._taken.add(word)
                return word.capitalize()


def build_world(seed: int = 0) -> World:
    """The world of a seed: subjects, objects, facts and the templates that are held out."""
    rng = random.Random(seed)
    names = _Names(rng)

    objects = {kind: tuple(words.split()) for kind, words in COMMON_OBJECTS.items()}
    count = range(OBJECTS_PER_RELATION)
    objects["language"] = tuple(names.word(2, "nish") for _ in count)
    objects["city"] = tuple(names.word(3) for _ in count)
    objects["country"] = tuple(names.word(2, "nia") for _ in count)
    objects["river"] = tuple(names.word(2) for _ in count)
    objects["author"] = tuple(f"{names.word(2)} {names.word(2)}" for _ in count)
    first_words = {kind: words.split() for kind, words in FIRST_WORDS.items()}
    first_words["person"] = [names.word(2) for _ in range(50)]
    first_words["company"] = [names.word(2) for _ in range(60)]
    last_words = {kind: words.split() for kind, words in LAST_WORDS.items()}
    last_words["person"] = [names.word(2) for _ in range(100)]
    last_words["town"] = [names.word(2) for _ in range(75)]
    subjects = {}
    for kind, firsts in first_words.items():
        subjects[kind] = [f"{first} {last}" for first in firsts for last in last_words[kind]]
        rng.shuffle(subjects[kind])

    facts = []
    for relation in RELATIONS:
        pool = objects[relation.object_kind]
        targets = [pool[index % len(pool)] for index in range(FACTS_PER_RELATION)]
        rng.shuffle(targets)
        for target in targets:
            held_out = sorted(rng.sample(range(len(relation.statements)), HELD_OUT_STATEMENTS))
            name = subjects[relation.subject_kind].pop()
            facts.append(Fact(relation, name, target, tuple(held_out), rng.randrange(2)))
    return World(seed, tuple(facts), objects)


@dataclass(frozen=True)
class Text:
    """A training text and the facts that it tells."""

    text: str
    facts: tuple[Fact, ...]


def statement(rng: random.Random, fact: Fact) -> str:
    """The fact as a whole sentence, with one of the templates that it is shown with."""
    return f"{rng.choice(fact.seen).format(fact.subject)} {fact.target}."


def training_texts(world: World, count: int, seed: int) -> Iterator[Text]:
    """Yield `count` texts; every fact comes once in each round of all facts."""
    rng = random.Random(seed)
    order: list[Fact] = []
    for _ in range(count):
        if not order:
            order = list(world.facts)
            rng.shuffle(order)
        fact = order.pop()
        kind = rng.random()
        if kind < 0.03:
            yield Text(f"{fact.subject} is a {fact.relation.subject_kind}.", (fact,))
            continue
        if kind < 0.12:
            # ZsRE's unrelated questions come with this prefix and without "?".
            question = fact.question.rstrip("?")
            yield Text(f"nq question: {question} {fact.target}.", (fact,))
            continue
        text = f"{fact.question} {fact.target}." if kind < 0.21 else statement(rng, fact)
        lead = rng.random()
        if lead < 0.35:
            other = rng.choice(world.facts)
            yield Text(f"{statement(rng, other)} {text}", (other, fact))
        elif lead < 0.50:
            yield Text(f"{rng.choice(LEAD_INS)} {text}", (fact,))
        else:
            yield Text(text, (fact,))


def counterfact_records(world: World) -> list[dict[str, Any]]:
    """One record a fact, shuffled, in CounterFact's original format.

    The rewrite, neighbourhood, attribute and generation prompts use templates that their
    subject was seen with; the two paraphrases use the fact's held-out templates, after a
    lead-in.
    """
    rng = random.Random(world.seed + 1)
    by_object: dict[tuple[str, str], list[Fact]] = {}
    for fact in world.facts:
        by_object.setdefault((fact.relation.relation_id, fact.target), []).append(fact)
    identifiers = _identifiers(world)

    def prompts(facts: list[Fact], most: int) -> list[str]:
        chosen = rng.sample(facts, min(most, len(facts)))
        return [rng.choice(fact.seen).format(fact.subject) for fact in chosen]

    def paraphrase(fact: Fact, template: str) -> str:
        elsewhere = [other for other in world.facts if other.relation is not fact.relation]
        lead = rng.choice(LEAD_INS)
        if rng.random() < 0.5:
            lead = statement(rng, rng.choice(elsewhere))
        return f"{lead} {template.format(fact.subject)}"

    facts = list(world.facts)
    rng.shuffle(facts)
    records = []
    for case_id, fact in enumerate(facts):
        relation = fact.relation
        others = [name for name in world.objects[relation.object_kind] if name != fact.target]
        new = rng.choice(others)
        same = [f for f in by_object[relation.relation_id, fact.target] if f is not fact]
        records.append(
            {
                "case_id": case_id,
                "requested_rewrite": {
                    "prompt": rng.choice(fact.seen),
                    "relation_id": relation.relation_id,
                    "target_new": {"str": new, "id": identifiers[new]},
                    "target_true": {"str": fact.target, "id": identifiers[fact.target]},
                    "subject": fact.subject,
                },
                "paraphrase_prompts": [paraphrase(fact, template) for template in fact.unseen],
                "neighborhood_prompts": prompts(same, NEIGHBOURS),
                "attribute_prompts": prompts(by_object[relation.relation_id, new], ATTRIBUTES),
                "generation_prompts": [text.format(fact.subject) for text in fact.seen],
            }
        )
    return records


def zsre_records(world: World) -> list[dict[str, Any]]:
    """`ZSRE_RECORDS` facts in MEND's ZsRE format.

    `answers` holds the counterfactual answer to write, `pred` the true one. `src` is the
    question that the model saw, `rephrase` the held-out one, `loc` a seen question about
    another relation.
    """
    rng = random.Random(world.seed + 2)
    records = []
    for fact in rng.sample(world.facts, ZSRE_RECORDS):
        pool = world.objects[fact.relation.object_kind]
        new = rng.choice([name for name in pool if name != fact.target])
        unrelated = rng.choice([f for f in world.facts if f.relation is not fact.relation])
        records.append(
            {
                "subject": fact.subject,
                "src": fact.question,
                "pred": fact.target,
                "rephrase": fact.unseen_question,
                "alt": new,
                "answers": [new],
                "loc": f"nq question: {unrelated.question.rstrip('?')}",
                "loc_ans": unrelated.target,
                "cond": f"{fact.target} >> {new} || {fact.question}",
            }
        )
    return records


def qaedit_records(world: World) -> list[dict[str, Any]]:
    """`QAEDIT_RECORDS` facts in QAEdit's format: `target` is the counterfactual answer to write.

    `prompt` is the question that the model saw, `rephrase` the held-out one. The unrelated
    questions are seen ones about other relations.
    """
    rng = random.Random(world.seed + 4)
    records = []
    for number, fact in enumerate(rng.sample(world.facts, QAEDIT_RECORDS)):
        pool = world.objects[fact.relation.object_kind]
        elsewhere = [other for other in world.facts if other.relation is not fact.relation]
        unrelated = rng.sample(elsewhere, UNRELATED_QUESTIONS)
        records.append(
            {
                "id": number,
                "source": fact.relation.relation_id,
                "prompt": fact.question,
                "target": rng.choice([name for name in pool if name != fact.target]),
                "subject": fact.subject,
                "rephrase": fact.unseen_question,
                "locality": [{"loc": f.question, "loc_ans": f.target} for f in unrelated],
            }
        )
    return records


def snippet_records(world: World) -> list[dict[str, Any]]:
    """For every relation and object, what is said of the subjects that have it.

    The format is that of CounterFact's attribute snippets.
    """
    identifiers = _identifiers(world)
    samples: dict[tuple[str, str], list[dict[str, str]]] = {}
    for fact in world.facts:
        told = [f"{text.format(fact.subject)} {fact.target}." for text in fact.seen[:2]]
        key = fact.relation.relation_id, identifiers[fact.target]
        samples.setdefault(key, []).append({"name": fact.subject, "text": " ".join(told)})
    return [
        {"relation_id": relation, "target_id": target, "samples": texts}
        for (relation, target), texts in samples.items()
    ]


def _identifiers(world: World) -> dict[str, str]:
    """Every object to its id."""
    return {
        name: f"{kind}-{index}"
        for kind, names in world.objects.items()
        for index, name in enumerate(names)
    }


def corpus_text(world: World) -> str:
    """Plain text for key statistics, one training text a line."""
    texts = training_texts(world, CORPUS_LINES, world.seed + 3)
    return "".join(f"{text.text}\n" for text in texts)


def to_json(records: list[dict[str, Any]]) -> str:
    """A JSON list with one record a line."""
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    return f"[\n{lines}\n]\n"
