"""Text that a person decides by, with everything that would show as something else, or as nothing, written out."""

import re
import unicodedata

# Categories: Cc control, Cf format (bidi overrides, zero width, tags), Cs surrogate, Co private use, Cn unassigned, Zl and Zp separators that break lines.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Letters and marks that are drawn as nothing, or as a space, although their category says otherwise.
_BLANK = frozenset(
    "\u00a0\u115f\u1160\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u2800\u3000\u3164\uffa0\u034f\u17b4\u17b5"
)
_SELECTORS = (range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0), range(0x180B, 0x1810))
_NOT_PLAIN = re.compile(r"[^ -~]")
_MARKS_MAX = 3  # stacked on one character; scripts in use need no more, and a tower of them covers its neighbours


def visible(text: str, *, lines: bool = False) -> str:
    """`text` with each hidden character as `\\u{...}`. Text that holds one, or that sequence itself, has its backslashes doubled, so that no two texts
    are shown alike; any other is shown as it is. `lines` keeps line feeds and tabs, for text shown as a block."""
    if "\\u{" not in text and not _NOT_PLAIN.search(text):
        return text
    shown: list[str] = []
    marks = 0
    changed = "\\u{" in text
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if _plain(character, lines) and marks <= _MARKS_MAX:
            shown.append("\\\\" if character == "\\" else character)
        else:
            shown.append(f"\\u{{{ord(character):x}}}")
            changed = True
    return "".join(shown) if changed else text


def _plain(character: str, lines: bool) -> bool:
    if " " <= character <= "~" or (lines and character in "\n\t"):
        return True
    number = ord(character)
    return unicodedata.category(character) not in _HIDDEN and character not in _BLANK and not any(number in selectors for selectors in _SELECTORS)
