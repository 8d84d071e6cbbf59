import re
from urllib.parse import unquote

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from bailiwick.critic.action import Action, Body, HttpResource, Verb
from bailiwick.gateway.actions import Unclear, normalise, normalise_path
from bailiwick.gateway.layers.heads import Framing, RequestHead
from bailiwick.kernel.ids import RunId

RUN = RunId("run-1")
SEGMENTS = st.text(st.sampled_from("ab.%2Ff5CceE;\\/~@:+-_*!0"), max_size=12)


def head(
    method: str = "GET", target: str = "/", *, fields: tuple[tuple[bytes, bytes], ...] = (), framing: Framing = "none", length: int | None = None
) -> RequestHead:
    form = "absolute" if "://" in target else "asterisk" if target == "*" else "origin"
    return RequestHead(method, target, form, "config.internal", fields, framing, length, True, False, False)  # type: ignore[arg-type]


def act(request: RequestHead, body: Body | None = None) -> Action:
    return normalise(request, scheme="https", host="config.internal", port=443, run=RUN, agent="deployer", body=body)


def resource(request: RequestHead) -> HttpResource:
    found = act(request).resource
    assert isinstance(found, HttpResource)
    return found


@pytest.mark.parametrize(
    ("method", "verb"),
    [
        ("GET", Verb.READ),
        ("HEAD", Verb.READ),
        ("OPTIONS", Verb.READ),
        ("POST", Verb.WRITE),
        ("PUT", Verb.WRITE),
        ("PATCH", Verb.WRITE),
        ("DELETE", Verb.DELETE),
    ],
)
def test_the_method_is_the_verb(method: str, verb: Verb) -> None:
    """Every forwarded method has one verb."""
    assert act(head(method)).verb is verb


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "get", "GETT", "", "QUERY", "PRI"])
def test_unknown_methods_are_refused(method: str) -> None:
    """A method whose effect is not known here is not forwarded; methods are case-sensitive (RFC 9110, 9.1)."""
    with pytest.raises(Unclear) as refused:
        act(head(method))
    assert refused.value.code == "method"


@pytest.mark.parametrize(
    ("framing", "length", "verb"), [("none", None, Verb.READ), ("length", 0, Verb.READ), ("length", 3, Verb.WRITE), ("chunked", None, Verb.WRITE)]
)
def test_a_read_with_content_is_a_write(framing: Framing, length: int | None, verb: Verb) -> None:
    """GET with a body carries something to the other side, so it is decided as what carries something."""
    for method in ("GET", "HEAD", "OPTIONS"):
        assert act(head(method, framing=framing, length=length)).verb is verb


@pytest.mark.parametrize("name", [b"x-http-method-override", b"x-http-method", b"x-method-override", b"x_http_method-override"])
def test_a_hidden_method_is_refused(name: bytes) -> None:
    """A field that turns a POST into a DELETE behind the gateway is refused; one that repeats the method is harmless."""
    with pytest.raises(Unclear) as refused:
        act(head("POST", fields=((name, b"DELETE"),)))
    assert refused.value.code == "method-override"
    assert act(head("POST", fields=((name, b"post"),))).verb is Verb.WRITE


@pytest.mark.parametrize(
    "query",
    ["_method=DELETE", "a=1&_METHOD=put", "%5Fmethod=DELETE", "a=1;_method=x", "_method[]=DELETE", "%5f%6Dethod=DELETE", "X-HTTP-Method-Override=DELETE"],
)
def test_a_hidden_method_in_the_query_is_refused(query: str) -> None:
    """In any spelling, before or after other parameters."""
    with pytest.raises(Unclear) as refused:
        act(head("POST", f"/x?{query}"))
    assert refused.value.code == "method-override"


def test_other_queries_pass_as_they_are() -> None:
    """The query is kept raw: it is part of what is decided and shown."""
    assert resource(head(target="/x?method=a&q=%2e%2E/../&_method=GET")).query == "method=a&q=%2e%2E/../&_method=GET"


@pytest.mark.parametrize("name", [b"x-original-url", b"x-rewrite-url", b"x_original_url"])
def test_a_hidden_target_is_refused(name: bytes) -> None:
    """A field that names another path than the request line is refused."""
    with pytest.raises(Unclear) as refused:
        act(head(fields=((name, b"/admin"),)))
    assert refused.value.code == "target-override"


@pytest.mark.parametrize(
    "path",
    [
        *("/a/../b", "/..", "/.", "/a/.", "/./a", "/a/%2e%2e/b", "/%2E", "/a/.%2e/b", "/a/..;x=1/b", "/a/%252e%252e/b", "/a/%25252e%25252e/b"),
        *("/a/..%2fb", "/a%2F..%2Fb", "/a/..%5cb", "/a\\..\\b", "/a/..%20/b", "/a/.%2e;/b", "/a/%2e%2e%3bx/b"),
    ],
)
def test_dot_segments_are_refused(path: str) -> None:
    """Plain, encoded once or more, behind an encoded separator or with a parameter: nobody who is honest sends one."""
    with pytest.raises(Unclear) as refused:
        act(head(target=path))
    assert refused.value.code == "dot-segment"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a",
        "a/b",
        "/a b",
        "/a\tb",
        "/a\0",
        "/a%00b",
        "/a%0d%0ab",
        "/a%7f",
        "/a%2500",
        "/%",
        "/%2",
        "/%zz",
        "/a#b",
        "/\u00e9",
        "/a\x7f",
        "/%" + "25" * 6 + "41",
    ],
)
def test_paths_that_nobody_may_send_are_refused(path: str) -> None:
    """NUL, controls, broken escapes, fragments, characters beyond ASCII."""
    with pytest.raises(Unclear):
        act(head(target=path) if path else RequestHead("GET", "", "origin", "h", (), "none", None, True, False, False))


@pytest.mark.parametrize("path", ["//a", "/a//b", "/a%2Fb", "/a%5Cb", "/a\\b", "/a;b=1", "/a%3Bb", "/a%252Fb", "/%c0%af", "/%ff", "/%EF%BC%8Fa", "/%E2%80%A6"])
def test_paths_that_servers_read_differently_are_ambiguous(path: str) -> None:
    """They are decided, and no rule with a path matches them."""
    assert resource(head(target=path)).ambiguous


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("/", "/"),
        ("/v1/staging/a", "/v1/staging/a"),
        ("/%76%31/a", "/v1/a"),
        ("/users/%40me", "/users/@me"),
        ("/a%2db%7E", "/a-b~"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/a%20b", "/a%20b"),
        ("/100%25", "/100%25"),
        ("/...", "/..."),
        ("/.well-known/x", "/.well-known/x"),
        ("/a/", "/a/"),
        ("/{id}", "/{id}"),
    ],
)
def test_escapes_are_normal(path: str, normal: str) -> None:
    """Every spelling of a path that servers take for one has one form (RFC 3986, 6.2.2)."""
    got = resource(head(target=path))
    assert (got.path, got.ambiguous) == (normal, False)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [("http://h/a?b", "/a", "b"), ("http://h", "/", ""), ("http://h?q=/x", "/", "q=/x"), ("http://h:80/", "/", ""), ("HTTP://h/a?b?c", "/a", "b?c")],
)
def test_absolute_targets_have_a_path(target: str, path: str, query: str) -> None:
    """The path of an absolute URL is what an origin form would have been (RFC 9112, 3.2.1)."""
    got = resource(head(target=target))
    assert (got.path, got.query, got.host) == (path, query, "config.internal")


def test_what_is_decided_is_what_is_forwarded() -> None:
    """Where a prefix of ours is taken off the path, the action is about the rest, and strict with it."""
    words = {"scheme": "https", "host": "api.openai.com", "port": 443, "run": RUN, "agent": "a"}
    for request in (head(target="/openai/v1/%66iles?a=1"), head(target="http://models.bailiwick.internal/openai/v1/files?a=1")):
        got = normalise(request, target="/v1/%66iles?a=1", **words).resource  # type: ignore[arg-type]
        assert isinstance(got, HttpResource)
        assert (got.path, got.query) == ("/v1/files", "a=1")
    with pytest.raises(Unclear):
        normalise(head(target="/openai/x"), target="/../x", **words)  # type: ignore[arg-type]


def test_an_asterisk_is_for_options() -> None:
    """`OPTIONS *` is a read of the server as a whole; with another method it is no target."""
    assert resource(head("OPTIONS", "*")).path == "*"
    with pytest.raises(Unclear):
        act(head("DELETE", "*"))


GIT = ((b"content-type", b"application/x-git-upload-pack-request"),)


@pytest.mark.parametrize(
    ("request_head", "verb"),
    [
        (head(target="/r.git/info/refs?service=git-upload-pack"), Verb.READ),
        (head(target="/r.git/info/refs?service=git-receive-pack"), Verb.WRITE),
        (head(target="/r.git/info/refs?service=git%2Dreceive-pack"), Verb.WRITE),
        (head(target="/r.git/info/refs?service=git-upload-pack&service=git-receive-pack"), Verb.WRITE),
        (head("POST", "/r.git/git-upload-pack", fields=GIT, framing="chunked"), Verb.WRITE),
        (head("POST", "/r.git/git-upload-pack", framing="chunked"), Verb.WRITE),
        (head("POST", "/r.git/git-upload-pack?x=1", fields=GIT, framing="chunked"), Verb.WRITE),
        (head("POST", "/r.git/xgit-upload-pack", fields=GIT, framing="chunked"), Verb.WRITE),
        (head("PUT", "/r.git/git-upload-pack", fields=GIT, framing="chunked"), Verb.WRITE),
        (head("DELETE", "/r.git/git-upload-pack", fields=GIT, framing="chunked"), Verb.DELETE),
        (head("POST", "/r.git/git-upload-pack", fields=(*GIT, (b"content-type", b"application/json")), framing="chunked"), None),
        (head("POST", "/r.git/git-receive-pack", fields=GIT, framing="chunked"), Verb.WRITE),
    ],
)
def test_what_git_sends_is_marked_and_its_posts_are_writes_until_the_repository_is_known(request_head: RequestHead, verb: Verb | None) -> None:
    """The discovery before a fetch is a read, the one before a push a write already; whether a POST is a fetch, `git` says."""
    if verb is None:
        with pytest.raises(Unclear):
            act(request_head)
    else:
        assert act(request_head).verb is verb


def test_the_body_is_known_by_its_type_until_it_is_read() -> None:
    """Without its bytes a body has a content type and no digest; two content types are refused."""
    json_type = (b"content-type", b"Application/JSON")
    assert act(head("POST", fields=(json_type,), framing="chunked")).body == Body(content_type="Application/JSON")
    whole = Body.of(b"{}", "application/json")
    assert act(head("POST", fields=(json_type,), framing="length", length=2), whole).body is whole
    with pytest.raises(Unclear):
        act(head("POST", fields=(json_type, json_type), framing="chunked"))


@settings(max_examples=500)
@given(st.lists(SEGMENTS, max_size=5).map(lambda parts: "/" + "/".join(parts)))
@example("/%252525252e")
def test_normalising_is_idempotent_and_keeps_the_meaning(path: str) -> None:
    """What is decided decodes to what was sent, is its own normal form, and, when not ambiguous, has the segments that a server sees."""
    try:
        normal, ambiguous = normalise_path(path)
    except Unclear:
        return
    assert normalise_path(normal) == (normal, ambiguous)
    assert unquote(normal) == unquote(path)
    assert not re.search(r"%[0-9a-f]?[a-f]", normal)
    if not ambiguous:
        assert [unquote(part) for part in path.split("/")] == unquote(path).split("/")
        assert not {".", ".."} & set(unquote(normal).split("/"))


@settings(max_examples=500)
@given(st.text(max_size=40), st.sampled_from(["GET", "POST", "DELETE"]), st.text(st.characters(max_codepoint=0x7E), max_size=30))
def test_any_target_is_an_action_or_unclear(path: str, method: str, query: str) -> None:
    """Nothing but Unclear is raised, whatever the target; what comes out is visible ASCII without a dot segment."""
    assume("?" not in path)
    request = RequestHead(method, f"/{path}?{query}", "origin", "h", (), "none", None, True, False, False)
    try:
        got = resource(request)
    except Unclear:
        return
    assert re.fullmatch(r"[!-~]+", got.path)
    assert re.fullmatch(r"[!-~]*", got.query)
    assert act(request).digest().startswith("sha256:")
