"""Clients nobody here wrote, each as it is started anywhere, in one sandbox: what they fetch arrives, is in the record as what it is, and over TLS that they
really verified."""

import importlib.util
import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.e2e import ordinary
from tests.e2e.installation import ROOT, Done
from tests.e2e.stage import CONFIG, Stage, decided, program
from tests.e2e.world.git_server import NAME as GIT
from tests.e2e.world.git_server import GitServer
from tests.e2e.world.package_index import NAME as PACKAGES
from tests.e2e.world.package_index import PackageIndex

from bailiwick.cli.demo.authority import Authority
from bailiwick.cli.demo.web import Request, Response, Server
from bailiwick.sandbox.surroundings import java_store

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.slow]

PLAIN, ELSEWHERE = "plain.internal", "elsewhere.internal"
NODE, JAVA = "fetch(process.argv[1]).then(answer => answer.text()).then(console.log)", "Fetch.java"
_PYTHON = {
    "urllib": "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())",
    "requests": "import sys, requests; print(requests.get(sys.argv[1]).text)",
    "httpx": "import sys, httpx; print(httpx.get(sys.argv[1]).text)",
    "aiohttp": """
import asyncio, sys, aiohttp
async def main():
    async with aiohttp.ClientSession() as session, session.get(sys.argv[1]) as answer:
        print(await answer.text())
asyncio.run(main())
""",
}
_MISTRUSTING = {  # told to trust another authority than the sandbox's, each in its own way
    "curl": {"CURL_CA_BUNDLE": "other.pem"},
    "urllib": {"SSL_CERT_FILE": "other.pem"},
    "requests": {"REQUESTS_CA_BUNDLE": "other.pem"},
    "httpx": {"SSL_CERT_FILE": "other.pem"},
    "aiohttp": {"SSL_CERT_FILE": "other.pem"},
    "node": {"NODE_EXTRA_CA_CERTS": "", "SSL_CERT_FILE": "other.pem"},
    "java": {"JDK_JAVA_OPTIONS": "-Djavax.net.ssl.trustStore=other.jks"},
}


def fetchers(url: str) -> dict[str, list[str]]:
    """The command of each client on this machine that fetches this URL, which ends with its name."""
    found = {"curl": ["curl", "-sS", f"{url}curl"]}
    found |= {name: ["python", "-c", code, f"{url}{name}"] for name, code in _PYTHON.items() if name == "urllib" or importlib.util.find_spec(name)}
    if shutil.which("wget"):
        found["wget"] = ["wget", "-qO-", f"{url}wget"]
    if shutil.which("node"):
        found["node"] = ["node", "-e", NODE, f"{url}node"]
    if shutil.which("java") and shutil.which("javac"):
        found["java"] = ["java", JAVA, f"{url}java"]
    return found


FETCHERS = fetchers(f"https://{CONFIG}/v1/staging/")
GIT_PUSH = "cd project && echo more >> README && git -c user.name=a -c user.email=a@example.org commit -qam more && git push -q origin HEAD:main"
PIP = ["python", "-m", "pip", "install", "-q", "--index-url", f"https://{PACKAGES}/simple", "--target", "into", "greeting"]


def commands() -> dict[str, dict[str, Any]]:
    """Everything that is run in the sandbox, by name."""
    plain: dict[str, list[str]] = {
        "curl plain": ["curl", "-sS", f"http://{PLAIN}/curl"],
        "curl direct": ["curl", "-sS", "--noproxy", "*", f"https://{CONFIG}/v1/staging/direct"],
        "curl direct six": ["curl", "-sS", "--noproxy", "*", "--resolve", f"{CONFIG}:443:[2001:db8::66]", f"https://{CONFIG}/v1/staging/six"],
        "curl plain direct": ["curl", "-sS", "--noproxy", "*", f"http://{PLAIN}/direct"],
        "curl http2": ["curl", "-sS", "--http2", "-w", "\n%{http_version}", f"https://{CONFIG}/v1/staging/two"],
        "curl moved": ["curl", "-sS", "-w", "%{http_code} %{redirect_url}", f"http://{PLAIN}/moved"],
        "curl moved followed": ["curl", "-sSL", f"http://{PLAIN}/moved"],
        "git": ["sh", "-c", f"git clone -q https://{GIT}/project.git && cat project/README && {GIT_PUSH}"],
        "pip": ["sh", "-c", f"{' '.join(PIP)} && PYTHONPATH=into python -c 'import greeting; print(greeting.greet())'"],
    }
    found: dict[str, dict[str, Any]] = {name: {"words": words} for name, words in (FETCHERS | plain).items()}
    for name, words in fetchers(f"https://{CONFIG}/v1/staging/mistrusting-").items():
        if name in _MISTRUSTING:
            found[f"{name} mistrusting"] = {"words": words, "environment": _MISTRUSTING[name]}
    found["git mistrusting"] = {
        "words": ["git", "clone", "-q", f"https://{GIT}/project.git", "other"],
        "environment": {"GIT_SSL_CAINFO": "other.pem", "GIT_SSL_CAPATH": "/nowhere"},
    }
    return found


@dataclass(frozen=True, slots=True)
class Seen:
    stage: Stage
    git: GitServer
    packages: PackageIndex
    done: Done
    said: dict[str, dict[str, Any]]

    def of(self, name: str) -> str:
        """What a client that succeeded printed."""
        assert self.said[name]["status"] == 0, self.said[name]
        return str(self.said[name]["out"])

    def actions(self, resource: str) -> list[tuple[str, str]]:
        return [(verb, decision) for verb, where, decision in decided(self.done.events) if where == resource]


def answer_plainly(request: Request) -> Response:
    if request.path == "/moved":
        return Response(302, b"moved\n", {"location": f"http://{ELSEWHERE}/here"})
    return Response.json(200, {"path": request.path})


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    index, git = PackageIndex(), GitServer()
    other = Authority.create("another authority")

    def pins(stage: Stage) -> dict[str, dict[str, Any]]:
        plain = stage.servers.enter_context(Server(answer_plainly))
        for server in (index, git):
            stage.servers.enter_context(server)
        return {
            PLAIN: stage.pin(plain.port, tls=False),
            ELSEWHERE: stage.pin(plain.port, tls=False),
            GIT: stage.pin(git.port, ca="git.pem"),
            PACKAGES: stage.pin(index.port, ca="packages.pem"),
        }

    agent = {
        "command": ["python", "clients.py"],
        "workspace": "clients",
        "boundary": [{"allow": ["read"], "http": host} for host in (PLAIN, GIT, PACKAGES)] + [{"allow": ["read"], "http": CONFIG, "path": "/v1/staging/**"}],
    }
    files: dict[str, str | bytes] = {
        "clients/clients.py": program("clients.py"),
        "clients/commands.json": json.dumps(commands()),
        f"clients/{JAVA}": program(JAVA),
        "clients/other.pem": other.pem,
        "clients/other.jks": java_store([ssl.PEM_cert_to_DER_cert(other.pem)]),
        "git.pem": git.ca,
        "packages.pem": index.ca,
    }
    values = {f"staging/{name}": f"for {name}" for name in (*FETCHERS, "direct", "six", "two")}
    with Stage({"clients": agent}, pins=pins, files=files, values=values) as stage:
        done = stage.run("clients", "fetch", seconds_max=110)
        assert done.status == 0, done.output + done.said
        yield Seen(stage, git, index, done, {line["name"]: line for line in map(json.loads, done.said.splitlines())})


@pytest.mark.parametrize("client", FETCHERS)
def test_it_fetches_over_tls(seen: Seen, client: str) -> None:
    """The value arrives with no help from the client's user, by an action that the record has whole, with the token put in on the way."""
    assert json.loads(seen.of(client))["value"] == f"for {client}"
    resource = f"https://{CONFIG}/v1/staging/{client}"
    assert seen.actions(resource) == [("read", "allow")]
    (finished,) = [event for event in seen.done.of("action.finished") if event["resource"] == resource]
    assert (finished["body"]["status"], finished["body"]["result"], finished["credential"]) == (200, "answered", "config-token")
    (arrival,) = seen.stage.arrived("GET", f"/v1/staging/{client}")
    assert arrival.authorised


@pytest.mark.parametrize("client", [name for name in FETCHERS if name in _MISTRUSTING] + ["git"])
def test_it_would_not_trust_another_authority(seen: Seen, client: str) -> None:
    """Told to trust somebody else it fetches nothing: what it did before, it did by verifying."""
    said = seen.said[f"{client} mistrusting"]
    assert said["status"] != 0
    assert "certif" in said["err"].lower() or "PKIX" in said["err"]
    assert seen.stage.arrived("GET", f"/v1/staging/mistrusting-{client}") == []


def test_without_a_proxy_it_is_governed_all_the_same(seen: Seen) -> None:
    """curl that ignores the proxy, over IPv4 and IPv6, with TLS and without, goes through the same door: `transparent` in the record. An address that
    stands for no name leads to the name that TLS verified."""
    assert json.loads(seen.of("curl direct"))["value"] == "for direct"
    assert json.loads(seen.of("curl direct six"))["value"] == "for six"
    assert json.loads(seen.of("curl plain direct")) == {"path": "/direct"}
    via = {event["resource"]: event["body"]["via"] for event in seen.done.of("action.decided")}
    assert via[f"https://{CONFIG}/v1/staging/direct"] == via[f"https://{CONFIG}/v1/staging/six"] == via[f"http://{PLAIN}/direct"] == "transparent"
    assert (via[f"https://{CONFIG}/v1/staging/curl"], via[f"http://{PLAIN}/curl"]) == ("connect", "proxy")
    assert {CONFIG, PLAIN} <= {event["resource"] for event in seen.done.of("name.asked")}


def test_plain_http_and_http2(seen: Seen) -> None:
    """HTTP in the clear is forwarded; who asks for HTTP/2 is told by ALPN that it is HTTP/1.1."""
    assert json.loads(seen.of("curl plain")) == {"path": "/curl"}
    assert seen.actions(f"http://{PLAIN}/curl") == [("read", "allow")]
    body, version = seen.of("curl http2").splitlines()
    assert (json.loads(body)["value"], version) == ("for two", "1.1")


def test_a_redirect_is_handed_on_and_not_followed(seen: Seen) -> None:
    """The agent gets the 302 itself; following it is another action, to another host, which nothing allows."""
    assert seen.of("curl moved") == f"moved\n302 http://{ELSEWHERE}/here"
    problem = json.loads(seen.of("curl moved followed"))
    assert (problem["status"], problem["retry"]) == (403, "never")
    assert seen.actions(f"http://{ELSEWHERE}/here") == [("read", "deny")]
    assert seen.actions(f"http://{PLAIN}/moved") == [("read", "allow")] * 2


def test_git_clones_and_may_not_push(seen: Seen) -> None:
    """Clone is a read, its POST too; the push is a write, denied at its first request, and the record says that it was git's."""
    said = seen.said["git"]
    assert said["out"] == "hello from git\n"
    assert said["status"] != 0
    assert "403" in said["err"]
    events = [event for event in seen.done.of("action.decided") if GIT in event["resource"]]
    facts = [(event["verb"], event["decision"], event["body"]["method"], event["body"]["arguments"]["git"]) for event in events]
    assert facts[:2] == [("read", "allow", "GET", "upload-pack"), ("read", "allow", "POST", "upload-pack")]
    assert {fact for fact in facts if fact[3] == "receive-pack"} == {("write", "deny", "GET", "receive-pack")}
    assert not any("receive-pack" in path for _, path in seen.git.requests)


def test_pip_installs_from_an_index(seen: Seen) -> None:
    """pip finds and fetches the wheel, verifies its hash and installs it; index and wheel are reads in the record."""
    assert seen.of("pip") == "hello from a wheel\n"
    assert seen.actions(f"https://{PACKAGES}/simple/greeting/") == [("read", "allow")]
    assert seen.actions(f"https://{PACKAGES}/files/greeting-1.0-py3-none-any.whl") == [("read", "allow")]
    assert "/files/greeting-1.0-py3-none-any.whl" in seen.packages.asked


def test_nothing_else_was_tried(seen: Seen) -> None:
    """The only denials are those a client was sent into; the only refused attempts are the handshakes of who did not trust us."""
    denied = {(event["verb"], event["resource"]) for event in seen.done.of("action.decided") if event["decision"] != "allow"}
    assert denied == {("read", f"http://{ELSEWHERE}/here"), ("write", f"https://{GIT}/project.git/info/refs?service=git-receive-pack")}
    assert {event["body"]["what"] for event in seen.done.of("attempt.refused")} == {"tls-handshake"}


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs to be root, to become somebody else")
def test_it_is_so_for_an_ordinary_user() -> None:
    """The same tests, by a user without any privilege."""
    python = ordinary.python()
    if python is None:
        pytest.skip(f"an ordinary user cannot run {sys.executable}, and there is no Python of the system of its version")
    with ordinary.home() as home:
        done = subprocess.run(
            [python, "-m", "pytest", "-q", "-p", "no:hypothesispytest", f"{ROOT}/tests/e2e/test_clients.py"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": f"{ROOT}/src"},
            user=ordinary.UID,
            group=ordinary.UID,
            extra_groups=[],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=115,
        )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
