import importlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bailiwick.gateway.refusal import ADVICE, TITLES, Refusal, for_model, render


def refusal(**more: Any) -> Refusal:
    words: dict[str, Any] = {"status": 403, "kind": "denied", "reason": "write to evil.example is not in the boundary", "rules": ("default-deny",)}
    return words | {"retry": "never", "run": "run-1", "action": "a-1"} | more  # type: ignore[return-value]


def test_a_refusal_is_problem_details() -> None:
    """RFC 9457: type, title, status, detail; and rule, reason, retry and advice, so that the agent knows what not to try."""
    status, fields, body = render(**refusal())
    problem = json.loads(body)
    assert status == problem["status"] == 403
    assert problem["type"] == "urn:bailiwick:problem:denied"
    assert (problem["title"], problem["rule"], problem["retry"], problem["advice"]) == (TITLES["denied"], "default-deny", "never", ADVICE)
    assert "hold" not in problem
    assert dict(fields)[b"content-type"] == b"application/problem+json"
    assert dict(fields)[b"content-length"] == str(len(body)).encode()


def test_a_hold_is_named() -> None:
    """What waits for a person says which hold, and that the same request may come again."""
    problem = json.loads(render(**refusal(kind="held", retry="after-signoff", hold="hold-1"))[2])
    assert (problem["hold"], problem["retry"]) == ("hold-1", "after-signoff")
    assert "hold-1" in problem["detail"]


def test_when_to_come_again() -> None:
    """`after` carries Retry-After, and only then may a client try again by itself."""
    later = dict(render(**refusal(status=429, kind="budget", retry="after", retry_after_seconds=30))[1])
    assert later[b"retry-after"] == b"30"
    assert b"x-should-retry" not in later
    assert dict(render(**refusal())[1])[b"x-should-retry"] == b"false"


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_models_get_their_own_error_shape(dialect: str) -> None:
    """The client finds type and message where its provider puts them."""
    _, fields, body = for_model(dialect, **refusal())
    error = json.loads(body)["error"]
    assert error["type"] == "permission_error"
    assert "default-deny" in error["message"]
    assert ADVICE in error["message"]
    assert error["bailiwick"]["retry"] == "never"
    assert dict(fields)[b"content-type"] == b"application/json"
    if dialect == "anthropic":
        assert json.loads(body)["type"] == "error"


def test_another_dialect_gets_problem_details() -> None:
    """A provider whose shape is not known is answered as plain HTTP."""
    assert for_model("other", **refusal()) == render(**refusal())


@pytest.mark.parametrize("stream", [False, True])
def test_the_official_openai_client_raises_permission_denied_once(stream: bool) -> None:
    """PermissionDeniedError with our words, after one request."""
    openai = pytest.importorskip("openai")
    httpx = importlib.import_module(openai.DefaultHttpxClient.__mro__[1].__module__.split(".")[0])
    seen = []

    def answer(request: Any) -> Any:
        seen.append(request)
        status, fields, body = for_model("openai", **refusal())
        return httpx.Response(status, headers=list(fields), content=body)

    with httpx.Client(transport=httpx.MockTransport(answer)) as transport:
        client = openai.OpenAI(api_key="placeholder", base_url="http://models.test/v1", http_client=transport)
        with pytest.raises(openai.PermissionDeniedError) as raised:
            client.chat.completions.create(model="gpt-5.2", messages=[{"role": "user", "content": "hi"}], stream=stream)
    assert len(seen) == 1
    assert "default-deny" in str(raised.value)


@given(st.text(max_size=2000), st.lists(st.text(max_size=300), max_size=30), st.text(max_size=30))
def test_any_words_make_a_bounded_answer(reason: str, rules: list[str], kind: str) -> None:
    """Whatever stands in the reason, the body is ASCII JSON of bounded size, and no field can be broken out of."""
    for answer in (render, lambda **words: for_model("openai", **words), lambda **words: for_model("anthropic", **words)):
        _, fields, body = answer(**refusal(reason=reason, rules=rules, kind=kind))
        json.loads(body.decode("ascii"))
        assert len(body) < 64 * 1024
        for name, value in fields:
            assert b"\n" not in name + value
