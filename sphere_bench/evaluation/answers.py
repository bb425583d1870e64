"""How a model is asked for an answer, where the answer ends, and whether it is the right one.

The protocol of Yang et al. 2025, https://arxiv.org/abs/2502.11177: greedy, at most 50 tokens, up to
the first full stop or the end of the line.
"""

import re
import string
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from jinja2 import TemplateError

from sphere_bench.errors import SphereBenchError
from sphere_bench.models.loading import LoadedModel
from sphere_bench.models.tokens import encode

Style = Literal["plain", "qa", "chat"]

QUESTION = "Please answer the question:\n\nQ: {}\nA:"
STOPS = (".", "\n")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Said(NamedTuple):
    """What a model said behind a prompt.

    Attributes:
        prompt: as the record has it.
        target: the right answer.
        is_question: whether the answer stands alone. Otherwise the prompt is the beginning of a
            sentence, which may go on behind the answer.
        text: what the model said, with what ended it.
        answer: the text without that and without the spaces around it.
    """

    prompt: str
    target: str
    is_question: bool
    text: str
    answer: str


class Judge(Protocol):
    """Decides which answers are right."""

    def __call__(self, said: Sequence[Said]) -> Sequence[float]:
        """For each answer 1 if it is right and 0 if not, or a number in between."""


def exact_match(said: Sequence[Said]) -> list[float]:
    """1 for each answer with the target's words, see :func:`normalized`, else 0.

    Of a sentence that the model goes on with, only the first words count, as many as the target's.
    """
    return [float(_matches(each)) for each in said]


def normalized(text: str) -> str:
    """Lower case, no punctuation, no articles, one space between words: as SQuAD compares answers.

    Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250.
    """
    plain = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def stripped(text: str) -> str:
    """A text without one full stop or line break at its end, and without the spaces around it."""
    return (text[:-1] if text.endswith(STOPS) else text).strip()


class Prompter:
    """Puts prompts into the form in which the model is asked, and ends its answers.

    Args:
        loaded: the model.
        style: of questions. ``plain`` is the question alone, ``qa`` has an instruction before it,
            ``chat`` is the tokenizer's own template. The beginning of a sentence is always plain.
        system: a system turn before the question, with ``chat``.
        key: of the configuration that has ``style`` and ``system``, for errors.

    Raises:
        SphereBenchError: the tokenizer has no template, or one without a system turn.
    """

    def __init__(self, loaded: LoadedModel, style: Style, system: str | None, key: str) -> None:
        self.loaded = loaded
        self.style = style
        self.system = system
        self._stops: dict[int, bool] = {}
        self._ends_of_text = _ends_of_text(loaded)
        if style != "chat" and system is not None:
            raise SphereBenchError(f"{key}.system needs {key}.style=chat: set it to null")
        if style == "chat" and not loaded.tokenizer.chat_template:
            raise SphereBenchError(
                f"{key}.style=chat: {loaded.tokenizer.name_or_path}: its tokenizer has no chat "
                "template: set it to plain or qa"
            )
        try:
            self.text("?", is_question=True)
        except TemplateError as error:
            what = "style=chat" if system is None else "system"
            other = "set the style to plain or qa" if system is None else "set it to null"
            raise SphereBenchError(
                f"{key}.{what}: the tokenizer's chat template refuses it ({error}): {other}"
            ) from error

    def text(self, prompt: str, is_question: bool) -> str:
        """What the model is given, the tokenizer's special tokens left out unless with ``chat``."""
        if self.style == "plain" or not is_question:
            return prompt.rstrip()
        if self.style == "qa":
            return QUESTION.format(prompt.strip())
        turns = [{"role": "user", "content": prompt.strip()}]
        if self.system is not None:
            turns.insert(0, {"role": "system", "content": self.system})
        return str(
            self.loaded.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        )

    def ids(self, prompt: str, is_question: bool) -> list[int]:
        """The tokens that the model is given.

        Raises:
            SphereBenchError: the tokenizer leaves none.
        """
        text = self.text(prompt, is_question)
        if self.style == "chat" and is_question:
            ids = list(self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
        else:
            ids = encode(self.loaded.tokenizer, text).ids
        if not ids:
            raise SphereBenchError(f"the tokenizer leaves no token of the prompt {prompt!r}")
        return ids

    def ends(self, token: int) -> bool:
        """Whether an answer ends with this token: a stop, a line break or the end of the text."""
        if token not in self._stops:
            text = self._decoded([token])
            stops = token in self._ends_of_text or any(stop in text for stop in STOPS)
            self._stops[token] = stops
        return self._stops[token]

    def decoded(self, tokens: Sequence[int]) -> str:
        """The text of what was said; the end of the text is no part of it."""
        ended = tokens and tokens[-1] in self._ends_of_text
        return self._decoded(tokens[:-1] if ended else tokens)

    def _decoded(self, tokens: Sequence[int]) -> str:
        decoded = self.loaded.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(decoded)


def _ends_of_text(loaded: LoadedModel) -> frozenset[int]:
    """The tokens that end a text or a turn, as the tokenizer and the model know them."""
    settings = getattr(loaded.model, "generation_config", None)
    known = getattr(settings, "eos_token_id", None)
    tokens = known if isinstance(known, list) else [known]
    return frozenset({*tokens, loaded.tokenizer.eos_token_id} - {None})


def _matches(said: Said) -> bool:
    target = normalized(said.target).split()
    if not target:  # such as the title "The The"
        return said.answer.lower() == stripped(said.target).lower()
    words = normalized(said.answer).split()
    return (words if said.is_question else words[: len(target)]) == target
