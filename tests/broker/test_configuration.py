"""The broker's part of a configuration: every error at its line, with the way out."""

import textwrap

import pytest

from bailiwick.broker.configuration import CredentialConfiguration, CredentialUses, EnvironmentCredential, FileCredential, canonical_host
from bailiwick.critic.action import Verb
from bailiwick.kernel.document import Invalid, Section, parse, validate


class Whole(Section):
    uses: CredentialUses = []
    credentials: dict[str, CredentialConfiguration] = {}


def read(text: str) -> Whole:
    return validate(parse(textwrap.dedent(text).encode(), file="b.yaml"), Whole)


def wrong(text: str) -> str:
    with pytest.raises(Invalid) as caught:
        read(text)
    assert len(caught.value.findings) == 1
    return str(caught.value)


def test_each_source_is_read_with_its_default() -> None:
    """A lease lives 15 minutes unless said otherwise."""
    whole = read("""\
        credentials:
          token: {source: environment, variable: API_TOKEN}
          key: {source: file, path: secrets/key, ttl: 1h}
    """)
    assert whole.credentials["token"] == EnvironmentCredential(source="environment", variable="API_TOKEN", ttl=900.0)
    assert whole.credentials["key"] == FileCredential(source="file", path="secrets/key", ttl=3600.0)


def test_a_use_is_read_with_its_defaults() -> None:
    """Bearer for every verb, for one canonical host."""
    [use] = read("uses: [{use: token, for: Config.Internal.}]").uses
    assert (use.use, use.host, use.template, use.verbs) == ("token", "config.internal", "Authorization: Bearer {value}", tuple(Verb))
    [use] = read('uses: [{use: token, for: "[2001:db8::7]", as: "X-Key: {value}", verbs: [read, call-model]}]').uses
    assert (use.host, use.template, use.verbs) == ("2001:db8::7", "X-Key: {value}", (Verb.READ, Verb.CALL_MODEL))


@pytest.mark.parametrize("source", ["vault", "openbao", "sealed", "postgresql", "github-app", "aws-sts", "oauth"])
def test_a_later_source_says_so(source: str) -> None:
    """A source of the design that is not built yet is named as such, at its line."""
    said = wrong(f"credentials:\n  token:\n    source: {source}\n    path: secret/x\n")
    assert said.startswith("b.yaml:2:3: credentials.token: source '" + source)
    assert "comes with a later version; use one of environment, file" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("credentials: {t: {source: magic}}", "b.yaml:1:15: credentials.t: source 'magic' is unknown; must be one of environment, file"),
        ("credentials: {t: {variable: A}}", "b.yaml:1:15: credentials.t: has no source; must be one of environment, file"),
        ("credentials: {t: {source: environment}}", "credentials.t.variable: is missing"),
        ("credentials: {t: {source: environment, variable: A, path: b}}", "b.yaml:1:53: credentials.t.path: is not a known key"),
        ("credentials: {t: {source: environment, variable: A=B}}", "credentials.t.variable: is not a variable's name"),
        ("credentials: {t: {source: file, path: ''}}", "credentials.t.path: is not a path"),
        ('credentials: {t: {source: file, path: "a\\0b"}}', "credentials.t.path: is not a path"),
        ("credentials: {t: {source: file, path: a, ttl: soon}}", "credentials.t.ttl: 'soon' is not a duration"),
        ("credentials: {t: {source: file, path: a, ttl: 0}}", "credentials.t.ttl: 0 s is not a lease's lifetime"),
        ("credentials: {t: {source: file, path: a, ttl: 8d}}", "at most 7d"),
        ("credentials: {t: [1]}", "credentials.t: is not a credential; write it as"),
        ("uses: [{use: t}]", "uses[0].for: is missing"),
        ("uses: [{use: t, for: '*.example.org'}]", "b.yaml:1:17: uses[0].for: '*.example.org' is not one host"),
        ("uses: [{use: t, for: 'https://a/b'}]", "is not one host"),
        ("uses: [{use: t, for: 'a:443'}]", "is not one host"),
        ("uses: [{use: t, for: ''}]", "is not one host"),
        ("uses: [{use: t, for: a, as: 'Bearer {value}'}]", "uses[0].as: is not a header field"),
        ("uses: [{use: t, for: a, as: 'Authorization: Bearer'}]", "has 0 places for the secret"),
        ("uses: [{use: t, for: a, as: 'A: {value} {value}'}]", "has 2 places for the secret"),
        ("uses: [{use: t, for: a, as: 'A: {other} {value}'}]", "has a brace beside"),
        ("uses: [{use: t, for: a, as: 'Host: {value}'}]", "field Host"),
        ("uses: [{use: t, for: a, as: 'content-length: {value}'}]", "field content-length"),
        ("uses: [{use: t, for: a, as: 'Transfer-Encoding: {value}'}]", "field Transfer-Encoding"),
        ("uses: [{use: t, for: a, as: 'Connection: {value}'}]", "field Connection"),
        ("uses: [{use: t, for: a, as: 'Proxy-Foo: {value}'}]", "field Proxy-Foo"),
        ('uses: [{use: t, for: a, as: "A: b\\r\\nC: {value}"}]', "control character"),
        ('uses: [{use: t, for: a, as: "A: \\u00e9{value}"}]', "not ASCII"),
        ("uses: [{use: t, for: a, verbs: []}]", "uses[0].verbs: names no verb"),
        ("uses: [{use: t, for: a, verbs: [read, read]}]", "names a verb twice"),
        ("uses: [{use: t, for: a, verbs: [look]}]", "uses[0].verbs[0]: "),
        ("uses: [{use: '../t', for: a}]", "uses[0].use: '../t' is not a credential's name"),
        ("uses: [{use: t, for: a}, {use: u, for: A, as: 'authorization: {value}'}]", "'t' and 'u' fill the same field of a"),
    ],
)
def test_what_is_wrong_is_said_at_its_place(text: str, said: str) -> None:
    """Every error names file, line, column and field, what it is and what it must be."""
    assert said in wrong(text)


def test_two_credentials_for_one_host_are_fine_when_told_apart() -> None:
    """By field or by verb."""
    assert len(read("uses: [{use: t, for: a, verbs: [read]}, {use: u, for: a, verbs: [write]}, {use: v, for: a, as: 'X-Team: {value}'}]").uses) == 3


def test_hosts_compare_as_names_do() -> None:
    """Case, one trailing dot and the brackets of an IPv6 literal are no part of a host."""
    assert canonical_host("A.Example.") == "a.example"
    assert canonical_host("[::1]") == "::1"
    assert canonical_host("a..") == "a."


def test_a_secret_written_in_the_wrong_place_is_not_shown() -> None:
    """Who writes the value where its name or place belongs does not find it in an error."""
    for text in ("credentials: {t: {source: environment, variable: sk-s3cret}}", "uses: [{use: t, for: a, as: 'Authorization: Bearer sk-s3cret'}]",
                 "uses: [{use: t, for: a, as: 'sk-s3cret'}]", "uses: [{use: t, for: a, as: 'A: sk-s3cret {value} {}'}]"):  # fmt: skip
        assert "s3cret" not in wrong(text)
