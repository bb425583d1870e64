"""What the fuzz tests share: ways to damage a file, and settings that make them repeatable."""

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SCALARS = (
    st.sampled_from([None, True, 0, -1, 2, 0.5, 1e308, "", "a", "\x00", [], {}]) | st.integers()
)


def fuzz(examples: int) -> settings:
    """The same examples every time; how long one takes does not count."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content cut short, or with one bit flipped."""
    place = draw(st.integers(0, len(content) - 1))
    if draw(st.booleans()):
        return content[:place]
    changed = bytearray(content)
    changed[place] ^= 1 << draw(st.integers(0, 7))
    return bytes(changed)


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value in which one place holds something else, or nothing any more."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 9)):
        places = sorted(value) if isinstance(value, dict) else range(len(value))
        place = draw(st.sampled_from(places))
        changed = value.copy()
        if isinstance(changed, dict) and not draw(st.integers(0, 4)):
            del changed[place]
        else:
            changed[place] = draw(mutated(value[place]))
        return changed
    return draw(SCALARS)
