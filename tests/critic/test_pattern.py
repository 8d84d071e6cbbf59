import re

import cedarpy
import pytest
from bench.oracle import glob_regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bailiwick.critic.pattern import HostPattern, PathPattern, is_ambiguous, like, literal, normal_host, normal_path

SEGMENTS = st.sampled_from(["a", "b", "ab", "aab", "v1", "x.json", "a*", "*a", "*", "a*b", "*.json"])
GLOBS = st.builds(
    lambda front, deep, back: "/" + "/".join([*front, *(["**", *back] if deep else [])]),
    st.lists(SEGMENTS, min_size=1, max_size=3),
    st.booleans(),
    st.lists(SEGMENTS, max_size=2),
)
PATHS = st.lists(st.sampled_from(["a", "b", "ab", "aab", "axb", "v1", "x.json", ".json", "ba", "a*b"]), min_size=1, max_size=6).flatmap(
    lambda parts: st.sampled_from(["/" + "/".join(parts), "/" + "/".join(parts) + "/"])
)


def asked(conditions: list[str], path: str) -> bool:
    """The conditions, evaluated by Cedar alone."""
    segments = path[1:].split("/")
    context = {"path": path, "segments": len(segments)}
    for index in range(16):
        context[f"front{index + 1}"] = segments[index] if index < len(segments) else ""
        context[f"back{index + 1}"] = segments[-1 - index] if index < len(segments) else ""
    request = {"principal": 'A::"a"', "action": 'Action::"a"', "resource": 'R::"r"', "context": context}
    result = cedarpy.is_authorized(request, f"permit (principal, action, resource) when {{ {' && '.join(conditions)} }};", [])
    assert not result.diagnostics.errors
    return result.allowed


@settings(max_examples=400, deadline=None)
@given(GLOBS, PATHS)
@example("/a/**", "/a")
@example("/a/**", "/a/")
@example("/*", "/")
@example("/a/*/b", "/a/x/y/b")
@example("/*/**", "/a")
@example("/**/a", "/a")
@example("/a/**/a", "/a")
@example("/a*", "/a/b")
def test_a_glob_compiled_to_cedar_matches_what_the_oracle_matches(glob: str, path: str) -> None:
    """A glob asked of Cedar matches exactly the paths that the same glob as a regular expression matches: `*` never crosses a slash."""
    assert asked(PathPattern.parse(glob).conditions(), path) == (re.fullmatch(glob_regex(glob), path) is not None)


@settings(max_examples=300, deadline=None)
@given(GLOBS, PATHS)
def test_the_lead_of_a_glob_begins_every_match(glob: str, path: str) -> None:
    """A path that a glob matches begins with the glob's literal segments: what the index leaves out could not have matched."""
    if re.fullmatch(glob_regex(glob), path):
        lead = PathPattern.parse(glob).lead
        assert tuple(path[1:].split("/"))[: len(lead)] == lead


@settings(max_examples=300, deadline=None)
@given(GLOBS, GLOBS, PATHS)
def test_a_glob_that_covers_another_matches_all_the_other_matches(wide: str, narrow: str, path: str) -> None:
    """`covers` never says too much."""
    if PathPattern.parse(wide).covers(PathPattern.parse(narrow)) and re.fullmatch(glob_regex(narrow), path):
        assert re.fullmatch(glob_regex(wide), path)


@settings(max_examples=300, deadline=None)
@given(st.text())
@example('"; permit (principal, action, resource); //')
@example('\\"')
@example("\n@id")
@example("*\\*")
@example("\u202e\u2028")
def test_no_text_ends_the_literal_it_stands_in(text: str) -> None:
    """Any text written as a Cedar string or pattern is one policy with that text in it, and nothing more."""
    policy = f"permit (principal, action, resource) when {{ context.x == {literal(text)} && context.x like {like(text + 'x', '*')} }};"
    (parsed,) = cedarpy.policies_to_pst(policy).static_policies.values()
    (when,) = parsed.clauses
    assert when.expr.left.right.value == text
    assert [type(part).__name__ for part in when.expr.right.pattern] == ["Char"] * (len(text) + 1) + ["Wildcard"]


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("API.Example.ORG.", "api.example.org"),
        ("a_b.example.org", "a_b.example.org"),
        ("10.0.0.1", "10.0.0.1"),
        ("[2001:DB8:0::1]", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("[::FFFF:a00:1]", "10.0.0.1"),
        ("fe80::1%eth0", None),
        ("api..example.org", None),
        ("", None),
        (".", None),
        ("0x7f.1", None),
        ("2130706433", None),
        ("127.1", None),
        ("010.0.0.1", None),
        ("a b", None),
        ("ex\u00e4mple.org", None),
        ("a\x00b", None),
        ("-a.org", None),
        ("a" * 64 + ".org", None),
        (".".join(["a" * 60] * 5), None),
    ],
)
def test_a_host_has_one_form(written: str, means: str | None) -> None:
    """A host is compared in lower case, without its final dot, an address in its shortest form; what is neither name nor address is no host."""
    assert normal_host(written) == means


@pytest.mark.parametrize(
    "path",
    [
        "/a//b",
        "/a%2Fb",
        "/a%2fb",
        "/a%5Cb",
        "/a\\b",
        "/../a",
        "/a/..",
        "/a/.",
        "/a/%2e%2E/b",
        "/a/..;x/b",
        "/.;/a",
        "/a%252e",
        "/a%00",
        "/a%0d%0a",
        "/a%",
        "/a%zz",
        "a",
        "",
        "*",
        "/a b",
        "/a\x7fb",
        "/\u00e9",
        "/a?b",
        "/a#b",
        "/%7f",
    ],
)
def test_what_two_servers_may_read_differently_is_ambiguous(path: str) -> None:
    """Encoded slashes, empty and dot segments, double escapes, control characters and what is no path at all are ambiguous."""
    assert is_ambiguous(normal_path(path))


@pytest.mark.parametrize(
    "path", ["/", "/a", "/a/", "/a.b/..c", "/.well-known/x", "/...", "/a%20b", "/%C3%A9", "/a;b=c/d", "/@s/p:1,2", "/a%25", "/100%25-x", "/%41"]
)
def test_plain_paths_are_not_ambiguous(path: str) -> None:
    """Names that begin with dots, escapes that mean one thing and parameters are read one way."""
    assert not is_ambiguous(normal_path(path))


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="/%2eE5cCfF.aA;~é\\", max_size=12))
def test_a_normal_path_stays_so(path: str) -> None:
    """Reading a path twice gives what reading it once gave, except where it is ambiguous and matches nothing."""
    once = normal_path(path)
    assert is_ambiguous(once) or normal_path(once) == once


def test_escapes_that_need_not_be_are_undone() -> None:
    """`%41`, `%3a` and `%c3%a9` are compared as `A`, `:` and `%C3%A9`."""
    assert normal_path("/%41%3a%c3%a9%7E") == "/A:%C3%A9~"
    assert PathPattern.parse("/é/%41/**") == PathPattern(("%C3%A9", "A"), True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a host name"),
        ("*", "a name such as"),
        ("a.*.org", "whole first label"),
        ("*a.org", "whole first label"),
        ("*.10.0.0.1", "address with a *"),
        ("münchen.example", "xn--"),
        ("a.org:0", "1 and 65535"),
        ("a.org:70000", "1 and 65535"),
        ("a.org:x", "not understood"),
        ("https://a.org", "not understood"),
        ("a.org/path", "not a host name"),
        ("::1", "brackets"),
    ],
)
def test_a_host_that_is_none_is_refused(text: str, says: str) -> None:
    """The refusal says what was expected."""
    with pytest.raises(ValueError, match=re.escape(says)):
        HostPattern.parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v1", "does not begin with a slash"),
        ("/a//b", "no rule may match"),
        ("/a/../b", "no rule may match"),
        ("/a%2Fb", "no rule may match"),
        ("/a?b=c", "no rule may match"),
        ("/a\nb", "no rule may match"),
        ("/a**", "whole segment"),
        ("/**/a/**", "more than one **"),
        ("/*" * 17, "more than 16 segments"),
    ],
)
def test_a_path_that_cannot_be_asked_exactly_is_refused(text: str, says: str) -> None:
    """The refusal says what was expected."""
    with pytest.raises(ValueError, match=re.escape(says)):
        PathPattern.parse(text)


def test_a_wildcard_is_one_or_more_labels_below() -> None:
    """`*.example.org` is every name below example.org, at any depth, and never example.org itself or a name that only ends alike."""
    below = HostPattern.parse("*.Example.org")
    assert below.matches("a.example.org")
    assert below.matches("b.a.example.org")
    assert not below.matches("example.org")
    assert not below.matches("badexample.org")
    assert HostPattern.parse("[::1]:8443") == HostPattern("::1", False, 8443)
