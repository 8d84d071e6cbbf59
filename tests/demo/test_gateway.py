import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.fakes.neighbourhood import Neighbourhood, neighbourhood

from bailiwick.broker.messages import LeasesUsed, LeaseUse
from bailiwick.cli.demo import claims, scripts, story
from bailiwick.cli.demo.claims import PRODUCTION, Evidence
from bailiwick.cli.demo.configuration_service import NAME
from bailiwick.cli.demo.world import MODEL, MODEL_HOST, STRANGER_HOST, Keys, World
from bailiwick.critic.enforcement import HoldSettled, HostPin, ModelRoute
from bailiwick.critic.rules import ModelRules
from bailiwick.gateway.connection import AgentConnection
from bailiwick.gateway.names import PROXY_NAME
from bailiwick.gateway.target import PROXY_PORT

pytestmark = pytest.mark.anyio

PLACEHOLDER = "a-placeholder"
NOBODY = scripts.Dial("127.0.0.1", 1)  # outside a sandbox a direct dial is really made: to where nobody listens
RULES: tuple[dict[str, Any], ...] = (
    {"allow": ["read"], "http": NAME},
    {"allow": ["write"], "http": NAME, "path": "/v1/staging/**"},
    {"hold": ["write"], "http": NAME, "path": "/v1/production/**", "approvers": ["oncall"], "wait": "1m"},
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def place(tmp_path: Path, keys: Keys) -> AsyncIterator[tuple[Neighbourhood, World]]:
    """The gateway as it serves a run, between the demo's agent and the demo's servers."""
    with World(keys, script=scripts.deployment(dials=[NOBODY])) as world:
        doors = world.doors
        async with neighbourhood(tmp_path, *RULES) as around:
            for name, port in ((NAME, doors.configuration), (MODEL_HOST, doors.model), (STRANGER_HOST, doors.stranger_https)):
                around.hosts[name] = HostPin(address="127.0.0.1", port=port, ca=doors.ca, tls=True)
            around.models = [ModelRoute(provider="openai", dialect="openai", host=MODEL_HOST)]
            around.model_rules = ModelRules(provider="openai", allow=[MODEL])
            around.leased = [NAME, MODEL_HOST]
            around.broker.lent = {NAME: lent("config-token", keys.configuration), MODEL_HOST: lent("openai-key", keys.model)}
            around.reopen()
            yield around, world


def lent(credential: str, secret: str) -> LeasesUsed:
    value, bare = (base64.b64encode(text.encode()).decode() for text in (f"Bearer {secret}", secret))
    return LeasesUsed(uses=[LeaseUse(lease=f"lease-{credential}", credential=credential, field="authorization", value=value, secret=bare)])


async def tell(around: Neighbourhood, answer: str) -> tuple[str, str]:
    """Runs the agent through the forward proxy, answers the hold, and gives back what the agent wrote and its summary."""
    loop = asyncio.get_running_loop()
    proxy = await loop.create_server(
        lambda: AgentConnection(around.run, around.desk, lambda _: (around.run.names.address_of(PROXY_NAME), PROXY_PORT)), "127.0.0.1", 0
    )
    url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    trust = around.directory / "trust.pem"
    trust.write_text(around.authority.certificate_pem)
    environment = {
        "PATH": os.environ["PATH"],
        "HTTPS_PROXY": url,
        "HTTP_PROXY": url,
        "SSL_CERT_FILE": str(trust),
        "OPENAI_API_KEY": PLACEHOLDER,
    }
    try:
        async with asyncio.timeout(60):
            agent = await asyncio.create_subprocess_exec(
                sys.executable, story._PROGRAM, story.TASK, cwd=around.directory, env=environment, stdout=-1, stderr=-2, stdin=-3
            )
            await around.until(lambda: bool(around.governor.opened) or agent.returncode is not None)
            for hold in list(around.governor.states):
                around.governor.states[hold] = answer
                around.desk.settle(HoldSettled(hold=hold, state=answer, reason="a person said so"))
            output, _ = await agent.communicate()
    finally:
        proxy.close()
    return output.decode(), (around.directory / "summary.json").read_text()


def findings(around: Neighbourhood, world: World, keys: Keys, output: str, summary: str, *, approved: bool) -> dict[str, claims.Finding]:
    evidence = Evidence(
        events=[msgspec.to_builtins(event) for event in around.recorder.events],
        journals=world.journals(),
        output=output,
        summary=summary,
        approved=approved,
        verified=None,
        altered=0,
        found=0,
        secrets={"openai-key": keys.model, "config-token": keys.configuration},
        written=b"".join(msgspec.json.encode(event) for event in around.recorder.events),
        dials=(),
    )
    return {finding.claim: finding for finding in claims.check(evidence)}


@pytest.mark.parametrize("answer", ["granted", "denied"])
async def test_the_story_through_the_gateway(place: tuple[Neighbourhood, World], keys: Keys, answer: str) -> None:
    """The unmodified agent with the official client, through the real gateway and critic to the real servers: what of the story the gateway alone can
    tell, holds; production arrives once after a grant, and never after a denial."""
    around, world = place
    output, summary = await tell(around, answer)
    assert "wrote summary.json" in output, output
    found = findings(around, world, keys, output, summary, approved=answer == "granted")
    for claim in (
        "the agent is unmodified and reached its model",
        "the agent never held a secret",
        "nothing we wrote holds a secret",
        "staging was written, once",
        "the stranger got nothing",
        "intent stands before outcome",
    ):
        assert found[claim].passed, found[claim].sentence
    writes = [arrival for arrival in world.configuration.arrivals if arrival.path == PRODUCTION and arrival.method == "PUT"]
    assert [(write.authorised, write.status) for write in writes] == ([(True, 200)] if answer == "granted" else [])
    assert all(PLACEHOLDER not in json.dumps(dict(request.fields)) for request in world.model.requests)
    refused = [step for step in json.loads(summary)["steps"] if step["result"].startswith("refused 403")]
    assert [step["tool"] for step in refused] == ([] if answer == "granted" else ["write_config"]) + ["http_post"]
    assert "retry: never" in refused[-1]["result"]
