"""Checks of a text and of a subject in its prompt, for files and for records made in memory."""

import unicodedata

LONGEST_QUOTE = 60


def quote(value: object) -> str:
    """``value`` as it would be typed, on one line and not too long."""
    text = repr(value)
    return text if len(text) <= LONGEST_QUOTE else f"{text[: LONGEST_QUOTE - 3]}..."


def text_problem(value: object) -> str | None:
    """Why ``value`` is not a usable text; ``None`` if it is one."""
    if not isinstance(value, str):
        return f"must be a text, not {quote(value)}"
    if not value.strip():
        return "is empty"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"is not valid Unicode: {quote(value)}"
    return None


def subject_problem(prompt: str, subject: str) -> str | None:
    """Why ``subject`` does not occur in ``prompt`` exactly once; ``None`` if it does.

    Editing reads the model at the subject's last token, so its place must be clear.
    """
    first, last = prompt.find(subject), prompt.rfind(subject)
    if first < 0:
        if _composed(subject) in _composed(prompt):
            return (
                f"holds the subject {quote(subject)} only after Unicode normalisation: one of "
                "them is composed (NFC), the other decomposed (NFD); write both the same way"
            )
        return f"does not hold the subject {quote(subject)}: {quote(prompt)}"
    if first != last:
        places = (first, last)
        inside = any(_is_inside_a_word(prompt, place, subject) for place in places)
        hint = " (a part of a longer word counts too)" if inside else ""
        return f"holds the subject {quote(subject)} more than once{hint}: {quote(prompt)}"
    return None


def is_part_of_a_word(prompt: str, subject: str) -> bool:
    """Whether the prompt holds ``subject`` within a longer word, as Rom in Romania."""
    return _is_inside_a_word(prompt, prompt.find(subject), subject)


def _is_inside_a_word(prompt: str, start: int, subject: str) -> bool:
    end = start + len(subject)
    return _belong_together(prompt[start - 1 : start] + subject[:1]) or _belong_together(
        subject[-1:] + prompt[end : end + 1]
    )


def _belong_together(characters: str) -> bool:
    """Whether two neighbouring characters are letters or digits of one word.

    Only letters that have capitals count: scripts without capitals often have no spaces, so that
    nothing would show where a word ends.
    """
    return len(characters) == 2 and all(
        each.isdecimal() or each.lower() != each.upper() for each in characters
    )


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)
