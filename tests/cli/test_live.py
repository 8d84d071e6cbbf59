import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from bailiwick.cli import live, terminal

TEXT = st.text(alphabet=st.sampled_from("ab │✓+0.1\\\x1b\r\n\t\u202e\u0301é界😀▶ж"), max_size=300)


def output(text: str, stream: str) -> dict[str, object]:
    return {"sequence": 1, "event": {"kind": "run.output", "body": {"text": text, "stream": stream}}}


def drawn(row: str) -> int:
    """As terminals draw it: marks on what they mark, wide ones on two columns."""
    return sum(0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in row)


@settings(max_examples=150, deadline=None, database=None)
@given(pieces=st.lists(st.tuples(TEXT, st.sampled_from(["stdout", "stderr"])), max_size=4), columns=st.integers(6, 200))
def test_every_row_an_agent_writes_begins_with_the_bar(pieces: list[tuple[str, str]], columns: int) -> None:
    """At any width: no row is wider than the terminal, which would go on without a bar, and nothing of the text is lost."""
    shown = live.Output()
    told = {"stdout": "", "stderr": ""}
    for text, stream in pieces:
        rows = [*shown.rows(output(text, stream), columns)]
        told[stream] += "".join(row[2:] for row in rows)
        assert all(row.startswith("│ ") and drawn(row) <= columns for row in rows)
    for stream, so_far in told.items():
        rows = [*shown.rest(stream, columns)]
        assert all(row.startswith("│ ") and drawn(row) <= columns for row in rows)
        whole = "".join(text for text, each in pieces if each == stream)
        assert so_far + "".join(row[2:] for row in rows) == "".join(terminal.shown(line) for line in whole.split("\n"))


def test_a_line_that_does_not_end_is_not_kept() -> None:
    """It is shown in parts, each behind the bar."""
    shown = live.Output()
    rows = [row for _ in range(100) for row in shown.rows(output("x" * 1000, "stdout"), 80)]
    assert sum(len(row) - 2 for row in rows) > 80_000
