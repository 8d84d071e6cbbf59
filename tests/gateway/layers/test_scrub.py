import base64
import copy
import html
import json
import os
import time
import urllib.parse

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bailiwick.gateway.layers.scrub import REPLACEMENT, SECRET_BYTES_MIN, Patterns, Scrubber, encodings

SECRET = b"sk-proj-Aa0_b/c+d=e%f\"g\\h&i<j>k'"
TOKEN = b"ghp_0123456789abcdefghijABCDEFGHIJ"
SECRETS = st.one_of(
    st.binary(min_size=SECRET_BYTES_MIN, max_size=24), st.text(st.characters(codec="ascii", min_codepoint=33), min_size=6, max_size=24).map(str.encode)
)


def scrub(patterns: Patterns, chunks: list[bytes]) -> bytes:
    scrubber = Scrubber(patterns)
    return b"".join([*(scrubber.feed(chunk) for chunk in chunks), scrubber.finish()])


def cut(data: bytes, at: list[int]) -> list[bytes]:
    cuts = sorted(position % (len(data) + 1) for position in at)
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def echoes(secret: bytes) -> list[bytes]:
    """How servers write back what they were sent, made without the module under test."""
    text = secret.decode("latin-1")
    return [
        secret,
        secret.hex().encode(),
        secret.hex().upper().encode(),
        urllib.parse.quote(secret, safe="").encode(),
        urllib.parse.quote(base64.b64encode(b"user:" + secret)).encode(),
        json.dumps(base64.b64encode(b"user:" + secret).decode()).replace("/", "\\/").encode(),
        urllib.parse.quote(secret).encode(),
        urllib.parse.quote_plus(secret).encode(),
        "".join(f"%{byte:02x}" for byte in secret).encode(),
        *(coder(b"x" * before + secret + b"y" * after) for before in range(3) for after in range(3) for coder in (base64.b64encode, base64.urlsafe_b64encode)),
    ] + ([json.dumps(text).encode(), json.dumps(text).replace("/", "\\/").encode(), html.escape(text).encode()] if text.isascii() else [])


@settings(max_examples=200)
@given(SECRETS, st.binary(max_size=20), st.binary(max_size=20), st.lists(st.integers(0, 500), max_size=4))
def test_no_form_of_a_secret_comes_out(secret: bytes, before: bytes, after: bytes, cuts: list[int]) -> None:
    """Raw, in base64 at any offset, hexadecimal, percent-encoded, in JSON or HTML: however it is cut into chunks, no form is in the output."""
    patterns = Patterns([secret])
    for echo in echoes(secret):
        out = scrub(patterns, cut(before + echo + after, cuts))
        for form in encodings(secret):
            assert form not in out
        assert secret not in out
        assert echo not in out


@settings(max_examples=200)
@given(st.lists(SECRETS, max_size=3), st.binary(max_size=400), st.lists(st.integers(0, 500), max_size=6))
def test_what_holds_no_secret_is_unchanged(secrets: list[bytes], data: bytes, cuts: list[int]) -> None:
    """Without a form in it, the output is the input, byte for byte."""
    patterns = Patterns(secrets)
    assume(not any(form in data for secret in secrets for form in encodings(secret)))
    assert scrub(patterns, cut(data, cuts)) == data


@settings(max_examples=300)
@given(
    st.lists(st.text(st.sampled_from("ab"), min_size=1, max_size=7).map(str.encode), min_size=1, max_size=3),
    st.text(st.sampled_from("abc"), max_size=60).map(str.encode),
    st.lists(st.integers(0, 60), max_size=8),
)
def test_chunks_do_not_matter(secrets: list[bytes], data: bytes, cuts: list[int]) -> None:
    """Secrets that overlap, repeat and hold each other are replaced alike in one piece and in many."""
    patterns = Patterns(secrets)
    once = scrub(patterns, [data])
    assert scrub(patterns, cut(data, cuts)) == once
    assert scrub(patterns, [bytes((byte,)) for byte in data]) == once
    assert not any(secret in once for secret in secrets)


def test_nothing_is_held_back_that_cannot_become_a_secret() -> None:
    """An event that ends in what begins no form goes on at once, whole; only a beginning waits."""
    scrubber = Scrubber([TOKEN])
    assert scrubber.feed(b"data: {}\n\n") == b"data: {}\n\n"
    assert scrubber.feed(b"data: ghp_01") == b"data: "
    assert scrubber.feed(b"\n\n") == b"ghp_01\n\n"
    assert scrubber.feed(TOKEN[:10]) == b""
    assert scrubber.feed(TOKEN[10:]) == REPLACEMENT
    assert scrubber.finish() == b""
    assert scrubber.found == 1


@pytest.mark.parametrize("index", range(len(echoes(SECRET))))
def test_a_secret_of_awkward_characters_is_found_in_every_echo(index: int) -> None:
    """With quotes, slashes, ampersands and percent signs every encoding looks different; each is found, in one piece and byte by byte."""
    echo = echoes(SECRET)[index]
    for chunks in ([b"<", echo, b">"], [bytes((byte,)) for byte in b"<" + echo + b">"]):
        out = scrub(Patterns([SECRET]), chunks)
        assert REPLACEMENT in out
        assert len(out) < len(REPLACEMENT) + 20


def test_what_follows_a_match_may_begin_the_next() -> None:
    """A match that runs into the held tail leaves a rest that is looked at afresh."""
    assert scrub(Patterns([b"abcab", b"cababz"]), [b"abcabab", b"cab"]) == REPLACEMENT * 2


def test_the_replacement_completes_no_secret_with_its_neighbours() -> None:
    """A secret that begins as the usual replacement ends, or the other way round, gets another replacement."""
    for secret, data in ((b"]abc", b"xyzabc"), (b"abc[r", b"abcxyz")):
        assert secret not in scrub(Patterns([b"xyz", secret]), [data])


def test_a_field_value_and_the_secret_in_it() -> None:
    """The value of the injected field and the secret alone are both looked for; the longer one goes whole, and looking for it costs nothing more."""
    both, alone = Patterns([TOKEN, b"Bearer " + TOKEN]), Patterns([TOKEN])
    assert both._plain == alone._plain
    assert scrub(both, [b"sent: Bearer " + TOKEN + b"; " + TOKEN]) == b"sent: " + REPLACEMENT + b"; " + REPLACEMENT
    assert scrub(Patterns([TOKEN, TOKEN + b"-other"]), [TOKEN + b"-ot", b"her"]) == REPLACEMENT


def test_head_values_are_replaced_whole() -> None:
    """A field of a head is one value: nothing is held back."""
    scrubber = Scrubber([SECRET])
    assert scrubber.value(b"Bearer " + SECRET) == b"Bearer " + REPLACEMENT
    assert scrubber.value(b"gzip") == b"gzip"


def test_short_and_empty_secrets() -> None:
    """A short secret is looked for raw only, an empty one not at all."""
    assert encodings(b"abc") == {b"abc"}
    assert Scrubber([b""]).feed(b"anything") == b"anything"
    assert not Patterns([])


@given(st.binary(min_size=1, max_size=8))
def test_the_replacement_makes_no_secret(secret: bytes) -> None:
    """A secret that is part of the usual replacement gets another one, so that replacing ends."""
    out = scrub(Patterns([secret, b"redacted"]), [secret + b"redacted" + secret])
    assert b"redacted" not in out
    assert secret not in out


def test_patterns_are_shared_and_have_no_text() -> None:
    """One set of patterns serves many answers, and never shows what it looks for."""
    patterns = Patterns([TOKEN])
    first = Scrubber(patterns)
    assert first.feed(TOKEN[:5]) == b""
    second = copy.copy(Scrubber(patterns))
    assert second.feed(b"hello\n") == b"hello\n"
    assert "ghp" not in repr(patterns)
    assert "ghp" not in repr(first)


@pytest.mark.slow
def test_clean_answers_cost_little() -> None:
    """At most 3 us/KB on an answer without a secret (the bar), with room for a slow machine."""
    patterns = Patterns([b"sk-proj-" + base64.urlsafe_b64encode(os.urandom(30))])
    body = json.dumps([{"id": number, "name": base64.b64encode(os.urandom(9)).decode()} for number in range(2000)]).encode()
    best = 1e9
    for _ in range(20):
        scrubber, started = Scrubber(patterns), time.perf_counter()
        scrubber.feed(body)
        best = min(best, time.perf_counter() - started)
    assert best * 1e6 / (len(body) / 1024) < 6
