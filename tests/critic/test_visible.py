import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bailiwick.critic.visible import visible

TRICKY = st.lists(st.sampled_from(["\\", "\\u{", "1b}", "\x1b", "\n", "n", "}"]), max_size=4).map("".join)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain /v1/a?b=c", "plain /v1/a?b=c"),
        ("\x1b[2J\x1b]0;x\x07", "\\u{1b}[2J\\u{1b}]0;x\\u{7}"),
        ("a\rb\nc\td", "a\\u{d}b\\u{a}c\\u{9}d"),
        ("C:\\new", "C:\\new"),
        ("C:\\\x1b", "C:\\\\\\u{1b}"),
        ("a\u202egpj.exe", "a\\u{202e}gpj.exe"),
        ("a\u200bb\ufeffc\u00add", "a\\u{200b}b\\u{feff}c\\u{ad}d"),
        ("\x9b31m", "\\u{9b}31m"),
        ("tag\U000e0041", "tag\\u{e0041}"),
        ("a\u2028b\u2029", "a\\u{2028}b\\u{2029}"),
        ("a\u00a0b\u3164c", "a\\u{a0}b\\u{3164}c"),
        ("a\ufe0f\U000e0101", "a\\u{fe0f}\\u{e0101}"),
        ("\ud800", "\\u{d800}"),
        ("Zürich 東京 שלום", "Zürich 東京 שלום"),
        ("\\u{202e}", "\\\\u{202e}"),
    ],
)
def test_hidden_characters_are_written_out(text: str, shown: str) -> None:
    """Escapes, bidi overrides, zero width and the like stand as what they are; letters of any script as themselves; a written-out one is told apart."""
    assert visible(text) == shown


@settings(max_examples=500)
@given(st.text())
def test_what_is_shown_is_printable_and_tells_different_texts_apart(text: str) -> None:
    """Nothing in it moves a cursor or hides, and it is on one line."""
    shown = visible(text)
    assert shown.isprintable()
    assert "\n" not in shown


@settings(max_examples=300)
@given(TRICKY, TRICKY)
@example("\n", "\\n")
@example("\\\x1b", "\\u{1b}")
@example("\x1b\\", "\x1b\\\\")
@example("\\", "\\\\")
def test_two_texts_are_never_shown_alike(one: str, other: str) -> None:
    """An approver cannot be shown one thing and sign another."""
    if one != other:
        assert visible(one) != visible(other)


def test_a_block_keeps_its_lines() -> None:
    """Line feeds and tabs of a body stay, carriage returns do not."""
    assert visible("a\n\tb\r\n", lines=True) == "a\n\tb\\u{d}\n"


def test_a_tower_of_marks_is_cut() -> None:
    """More combining marks than any script stacks are written out, so that they cover nothing."""
    assert visible("a" + "\u0301" * 5) == "a\u0301\u0301\u0301" + "\\u{301}" * 2
