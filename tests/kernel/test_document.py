"""Documents: whatever is wrong in a file is said at its line and column, all of it at once, and nothing else happens."""

import textwrap
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bailiwick.kernel.document import Finding, Invalid, Section, parse, read, validate


class Small(Section):
    kind: Literal["small"]
    size: int


class Large(Section):
    kind: Literal["large"]
    weight: float


class Inner(Section):
    name: str
    count: int = 0

    @pydantic.field_validator("name")
    @classmethod
    def _not_root(cls, value: str) -> str:
        if value == "root":
            raise ValueError("'root' is not a name to use; choose another")
        return value


class Outer(Section):
    title: str
    inner: Inner | None = None
    many: list[Inner] = []
    by_name: dict[str, Inner] = {}
    things: list[Annotated[Small | Large, pydantic.Field(discriminator="kind")]] = []


def findings(text: str | bytes, model: type[Section] = Outer) -> list[str]:
    with pytest.raises(Invalid) as caught:
        validate(parse(text if isinstance(text, bytes) else textwrap.dedent(text).encode(), file="b.yaml"), model)
    assert str(caught.value) == "\n".join(map(str, caught.value.findings))
    return [str(finding) for finding in caught.value.findings]


def test_a_valid_document_is_the_model() -> None:
    """Frozen, with defaults."""
    outer = validate(parse(b"title: a\ninner: {name: b}\nthings: [{kind: small, size: 3}]\n", file="b.yaml"), Outer)
    assert outer == Outer(title="a", inner=Inner(name="b"), things=[Small(kind="small", size=3)])
    with pytest.raises(pydantic.ValidationError):
        outer.title = "b"


def test_every_error_at_once_in_order() -> None:
    """All findings, sorted by place."""
    said = findings("""\
        titel: a
        inner:
          name: root
          count: many
        many:
          - name: a
          - {name: b, extra: 1}
        by_name:
          x: {count: 1}
    """)
    assert [line.split(": ", 2)[:2] for line in said] == [
        ["b.yaml:1:1", "title"],
        ["b.yaml:1:1", "titel"],
        ["b.yaml:3:3", "inner.name"],
        ["b.yaml:4:3", "inner.count"],
        ["b.yaml:7:15", "many[1].extra"],
        ["b.yaml:9:3", "by_name.x.name"],
    ] or [line.split(": ", 2)[:2] for line in said] == [
        ["b.yaml:1:1", "titel"],
        ["b.yaml:1:1", "title"],
        ["b.yaml:3:3", "inner.name"],
        ["b.yaml:4:3", "inner.count"],
        ["b.yaml:7:15", "many[1].extra"],
        ["b.yaml:9:3", "by_name.x.name"],
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff", "b.yaml:1:1: byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"title: a\nx: \xc3(\n", "b.yaml:2:4: byte 0xc3 is not UTF-8"),
        ("title: é\nx: ".encode() + b"\xff", "b.yaml:2:4: byte 0xff"),
        ("é: ".encode() + b"\xff", "b.yaml:1:4: byte 0xff"),
        ("title: a\x00b", "b.yaml:1:9: is not YAML: character U+0000 is not taken; remove it"),
        ("title: a\nother: \x1b[2J", "b.yaml:2:8: is not YAML: character U+001B is not taken"),
        ("title: [a", "b.yaml:1:10: is not YAML"),
        ("title: a\n b: c", "b.yaml:2:3: is not YAML"),
        ("title: 'a", "b.yaml:1:10: is not YAML"),
        ("a: b\n---\nc: d", "b.yaml:2:1: is not YAML"),
        ("title: a\ntitle: b", "b.yaml:2:1: key 'title' stands here a second time; keep one"),
        ("title: a\ninner:\n  name: a\n  name: b", "b.yaml:4:3: inner: key 'name' stands here a second time"),
        ("title: &a x\nother: *a", "b.yaml:2:8: is an alias (*a); aliases are not taken, write the value out"),
        ("a: &a {<<: *a}", "b.yaml:1:8: a: merge keys (<<) are not taken"),
        ("title: &a [*a]", "b.yaml:1:12: is an alias"),
        ("title: !!python/object/apply:os.system [ls]", "b.yaml:1:8: title: has the tag"),
        ("title: !secret x", "b.yaml:1:8: title: has the tag !secret; tags are not taken"),
        ("? [a]\n: b", "b.yaml:1:3: has a key that is not plain text"),
        ("? {a: b}\n: c", "b.yaml:1:3: has a key that is not plain text"),
        ("title: !!int x", "b.yaml:1:8: title: is not the int that it looks like"),
        ("title: !!binary '*'", "b.yaml:1:8: title: has the tag"),
        ("title: 2026-99-99", "b.yaml:1:8: title: is not the timestamp that it looks like; correct it, or quote it if it is text"),
        ("- a\n- b", "b.yaml:1:1: is not a mapping"),
        ("just text", "b.yaml:1:1: "),
        ("3", "b.yaml:1:1: "),
        ("", "b.yaml:1:1: title: is missing; it must be given"),
        ("# nothing", "title: is missing"),
        ("~", "title: is missing"),
        ("title: 3", "b.yaml:1:1: title: is not text; quote it"),
        ("title: a\n1: b", "b.yaml:2:1: has a key that is not plain text; quote it"),
        ("title: a\nnull: b", "b.yaml:2:1: has a key that is not plain text"),
        ("title: a\nthings: [{kind: huge}]", "b.yaml:2:10: things[0]: 'kind' is 'huge'; must be one of 'small', 'large'"),
        ("title: a\nthings: [{kind: small, size: x}]", "b.yaml:2:24: things[0].size: "),
        ("title: a\nthings: [{size: 1}]", "b.yaml:2:10: things[0]: has no 'kind'; it must be given"),
        ("title: a\nthings: [{kind: large, weight: .nan}]", "b.yaml:2:24: things[0].weight: "),
        ("title: a\nmany: {}", "b.yaml:2:1: many: is not a list; write it as [a, b]"),
        ("title: a\nmany: [3]", "b.yaml:2:8: many[0]: is not a mapping"),
    ],
)  # fmt: skip
def test_each_kind_of_error_has_its_place(text: str | bytes, said: str) -> None:
    """file:line:column, the field, what is wrong and what to do."""
    [first, *_] = findings(text)
    assert said in first, first


def test_python_is_not_run_and_no_value_of_a_tag_is_made(tmp_path: Path) -> None:
    """A document makes plain values or nothing."""
    target = tmp_path / "made"
    findings(f"title: !!python/object/apply:pathlib.Path.touch ['{target}']")
    findings(f"title: !!python/object/new:os.system ['touch {target}']")
    assert not target.exists()


def test_a_bomb_is_refused_before_it_grows() -> None:
    """A billion laughs is a finding; so are a file too large and one too deep."""
    laughs = "a: &a [x, x]\n" + "\n".join(f"{b}: &{b} [*{a}, *{a}]" for a, b in zip("abcdefghijklmnop", "bcdefghijklmnopq", strict=True))
    assert "is an alias" in findings(laughs)[0]
    assert "must be at most 4194304" in findings(b"#" * (4 * 1024 * 1024 + 1))[0]
    assert "b.yaml:1:42: is not YAML: nested more than 40 deep" in findings("[" * 60 + "]" * 60)[0]
    assert "nested" in findings("[" * 60 + "]" * 60)[0]
    assert "nested" in findings("[" * 5_000 + "]" * 5_000)[0]
    assert "nested" in findings("{a: " * 5_000 + "}" * 5_000)[0]


@pytest.mark.parametrize("scalar", ["no", "off", "on", "yes", "Yes"])
def test_yes_and_no_are_what_yaml_1_1_says(scalar: str) -> None:
    """They are booleans, so that a text field refuses them with its place instead of taking a surprise."""
    assert findings(f"title: {scalar}")[0].startswith("b.yaml:1:1: title: ")


def test_what_cannot_be_read_is_a_finding(tmp_path: Path) -> None:
    """A missing file, a directory, one that may not be opened."""
    with pytest.raises(Invalid, match=r"none\.yaml:1:1: cannot be read: No such file"):
        read(tmp_path / "none.yaml")
    with pytest.raises(Invalid, match=r"shown:1:1: cannot be read: Is a directory"):
        read(tmp_path, shown_as="shown")
    (tmp_path / "b.yaml").write_text("title: a")
    assert read(tmp_path / "b.yaml").value == {"title": "a"}


def test_a_place_can_be_asked_for() -> None:
    """Of a value, and of the nearest ancestor of one that is not there."""
    document = parse(b"a:\n  b:\n    - c\n    - d: e\n", file="b.yaml")
    assert document.place(()) == (1, 1)
    assert document.place(("a",)) == (1, 1)
    assert document.place(("a", "b")) == (2, 3)
    assert document.place(("a", "b", 1)) == (4, 7)
    assert document.place(("a", "b", 1, "d")) == (4, 7)
    assert document.place(("a", "b", 7)) == document.place(("a", "b"))
    assert document.place(("x", "y")) == (1, 1)
    assert parse(b"", file="b.yaml").place(("a",)) == (1, 1)
    assert document.finding(("a", "b", 0), "is wrong") == Finding("b.yaml", 3, 7, "a.b[0]", "is wrong")


def test_a_credential_where_a_name_belongs_is_not_repeated() -> None:
    """Even an error that names the value it refuses does not show one that looks like a secret; another it shows."""
    secret = "sk-live-0f93b1d2c4a5968778a1"
    (said,) = findings("{title: a, things: [{kind: " + secret + "}]}")
    assert said.startswith("b.yaml:1:")
    assert secret not in said
    assert "looks like a secret" in said
    assert "'medium'" in findings("{title: a, things: [{kind: medium}]}")[0]


def test_no_secret_looking_input_in_an_error() -> None:
    """A value in a wrong place is not repeated by a type error: it may be a secret."""
    said = "\n".join(findings("title: a\ninner: {name: a, count: planted-s3cret}\nmany: planted-s3cret\n"))
    assert "s3cret" not in said


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_document_or_invalid(raw: bytes) -> None:
    """No other exception, and every finding has a place in the file."""
    lines = raw.count(b"\n") + raw.count(b"\r") + 10
    for finding in found(raw):
        assert 1 <= finding.line <= lines
        assert finding.column >= 1


def found(raw: bytes) -> list[Finding]:
    try:
        validate(parse(raw, file="b.yaml"), Outer)
    except Invalid as invalid:
        return invalid.findings or [Finding("no finding", 0, 0, "", "")]
    return []


TOKENS = st.lists(
    st.sampled_from(["a", "title", ": ", "\n", "  ", "- ", "[", "]", "{", "}", ", ", "&x ", "*x", "!t ", "? ",
                     "'", '"', "|", ">", "#", "---\n", "<<", "~", "1", "yes", "!!set ", "2026-01-01", "%"]),
    max_size=25,
)  # fmt: skip


@given(TOKENS)
@settings(max_examples=500, deadline=None)
def test_any_yaml_is_a_document_or_invalid(tokens: list[str]) -> None:
    """Nearly valid text is what the parser's corners are made of."""
    assert all(finding.line for finding in found("".join(tokens).encode()))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["title", "inner", "many", "by_name", "things", "name", "kind", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(VALUES)
@settings(max_examples=200, deadline=None)
def test_any_value_is_a_model_or_findings_within_the_file(value: object) -> None:
    """Well-formed documents of any shape."""
    text = yaml.safe_dump(value, allow_unicode=True)
    assert all(1 <= finding.line <= text.count("\n") + 1 for finding in found(text.encode()))
