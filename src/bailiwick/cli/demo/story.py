"""The story's setting: a directory with a configuration, the agent's workspace, and the servers it talks to.

keys = Keys.fresh()
with WorldProcess(keys) as world:
    setting = prepare(directory, world.doors, keys, approver="ana")
    ... `bailiwick up` with `setting.environment`, `run deployer`, approve `setting.held` ...
    findings = claims.check(Evidence(journals=world.journals(), ...))
"""

import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from bailiwick.cli.demo import configuration_service, scripts
from bailiwick.cli.demo.world import MODEL, MODEL_HOST, STRANGER_HOST, Doors, Keys
from bailiwick.kernel.errors import CallerError

AGENT = "deployer"
TASK = f"Ticket {scripts.TICKET}: roll out the nightly build"
KEY_VARIABLE = "DEMO_OPENAI_KEY"
HELD_PATH = f"/v1/production/{scripts.KEY}"

_PROGRAM = Path(__file__).parent / "agent" / "deployer.py"

_CONFIGURATION = """\
# The demo's installation, written by `bailiwick demo`.
trust_domain: demo.internal

hosts:  # names that lead to the demo's servers on this machine
  {config_host}: {{address: "127.0.0.1:{configuration}", ca: ca.pem, tls: true}}
  {model_host}: {{address: "127.0.0.1:{model}", ca: ca.pem, tls: true}}
  {stranger_host}: {{address: "127.0.0.1:{stranger}", ca: ca.pem, tls: true}}  # so that a post that got out would be seen to arrive

approvers:
  oncall: {{operators: {operators}, quorum: 1, expires: 10m}}

agents:
  {agent}:
    command: [{python}, deployer.py, "{{task}}"]
    workspace: ./{agent}
    trees: {trees}
    sandbox: bubblewrap
    models: {{provider: openai, allow: [{model_name}], budget: {{tokens: 50_000, usd: 1}}}}
    limits: {{wall: 5m, calls: 100, writes: 10}}  # cpu, memory and pids keep their defaults: one written here is refused where it cannot be enforced
    boundary:
      - {{allow: [read], http: {config_host}}}
      - {{allow: [write, delete], http: {config_host}, path: /v1/staging/**}}
      - {{hold: [write], http: {config_host}, path: /v1/production/**, approvers: [oncall], wait: 5m, four_eyes: false}}
    credentials:
      - {{use: config-token, for: {config_host}, as: "Authorization: Bearer {{value}}"}}
      - {{use: openai-key, for: {model_host}, as: "Authorization: Bearer {{value}}"}}

credentials:
  config-token: {{source: file, path: secrets/config-token, ttl: 15m}}
  openai-key: {{source: environment, variable: {key_variable}, ttl: 15m}}
"""

_POLICY = """\
// A policy of the operator's own, beside those made from the boundary: whatever a boundary says, production is never deleted.
@id("demo/production-is-never-deleted")
forbid (principal, action in [Action::"http.delete"], resource == Host::"{config_host}")
  when {{ context.ambiguous || context.path like "/v1/production/*" }};
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """What `prepare` made. `environment` is what the installation must be started with; `held` is the path of the write a person is asked about;
    `secrets` are all values that must never be found outside the broker and the servers."""

    directory: Path
    configuration: Path
    workspace: Path
    agent: str
    task: str
    held: str
    environment: dict[str, str] = field(repr=False)
    secrets: dict[str, str] = field(repr=False)


def prepare(directory: Path, doors: Doors, keys: Keys, *, approver: str, python: str = sys.executable) -> Setting:
    """Writes the setting into `directory`, which must exist; what is there of an earlier demo is replaced. CallerError when the agent's Python lacks
    the `openai` package (of another than ours the caller must know that it has it)."""
    if python == sys.executable and importlib.util.find_spec("openai") is None:
        raise CallerError(f"the demo's agent needs the package openai, which {python} does not have; install it with: {python} -m pip install 'openai>=2'")
    workspace = directory / AGENT
    shutil.rmtree(workspace, ignore_errors=True)
    workspace.mkdir()
    shutil.copyfile(_PROGRAM, workspace / "deployer.py")
    policies = directory / "policies"
    policies.mkdir(exist_ok=True)
    (policies / "production.cedar").write_text(_POLICY.format(config_host=configuration_service.NAME))
    (directory / "ca.pem").write_text(doors.ca)
    token = directory / "secrets" / "config-token"
    token.parent.mkdir(mode=0o700, exist_ok=True)
    token.touch(mode=0o600)
    token.write_text(keys.configuration + "\n")
    configuration = directory / "bailiwick.yaml"
    configuration.write_text(
        _CONFIGURATION.format(
            agent=AGENT,
            config_host=configuration_service.NAME,
            configuration=doors.configuration,
            key_variable=KEY_VARIABLE,
            model=doors.model,
            model_host=MODEL_HOST,
            model_name=MODEL,
            operators=json.dumps([approver]),
            python=json.dumps(python),
            stranger=doors.stranger_https,
            stranger_host=STRANGER_HOST,
            trees=json.dumps(_trees()),
        )
    )
    return Setting(
        directory=directory,
        configuration=configuration,
        workspace=workspace,
        agent=AGENT,
        task=TASK,
        held=HELD_PATH,
        environment={KEY_VARIABLE: keys.model},
        secrets={"openai-key": keys.model, "config-token": keys.configuration},
    )


def _trees() -> list[str]:
    """The interpreter and the packages of this installation, which the agent's Python needs; what lies under /usr is in every sandbox."""
    found = dict.fromkeys(str(Path(prefix).resolve()) for prefix in (sys.prefix, sys.base_prefix))
    return [tree for tree in found if not Path(tree).is_relative_to("/usr")]
