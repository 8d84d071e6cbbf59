"""What `bailiwick init` writes: a configuration with a reason beside each line, an agent that works without a key, a place for policies."""

from pathlib import Path

CONFIGURATION = """\
# Bailiwick: what runs here, and what it may do. `bailiwick check` validates this file; docs/reference/configuration.md has every key.

# The name of this installation in the identity of every run: spiffe://<trust_domain>/agent/<agent>/run/<run>.
trust_domain: bailiwick.internal

# Who may use the API, by unix user (or `uid:`), and as what: viewer reads, approver signs off, operator runs and stops, admin all.
# Without this section root and whoever starts Bailiwick are admins, and nobody else may do anything.
#
# operators:
#   ana: {user: ana, roles: [approver]}
#   bo: {user: bo, roles: [operator]}

# Names that are not where DNS says. The only way an agent reaches a loopback or private address is a name pinned here.
#
# hosts:
#   config.internal: 10.20.0.7:443

# Groups of people whose sign-off a `hold` rule asks for. `quorum` of them must agree; an approval not used expires.
approvers:
  oncall: {operators: [@OPERATOR@], quorum: 1, expires: 2h}

# Credentials lent to a run for the hosts it needs them for. The agent never holds the value: it is put in at the gateway, last.
#
# credentials:
#   config-token: {source: environment, variable: CONFIG_TOKEN, ttl: 15m}

agents:
  hello:
    # The program. {task} becomes the task's text, which is in the variable BAILIWICK_TASK too.
    command: [python3, agent.py, "{task}"]

    # Copied in, and the working directory. What the agent changes comes back with `bailiwick diff` and `bailiwick apply`.
    workspace: ./agents/hello

    # Hard bounds of one run. Reaching one ends the run.
    limits: {wall: 10m, calls: 100, writes: 10}

    # What it may do. Nothing that no rule allows is done: default deny. The strictest rule that matches decides.
    boundary:
      - {allow: [read], http: example.org}
      - {hold: [write], http: example.org, path: /drafts/**, approvers: [oncall], wait: 10m}
      - {deny: [read, write, delete, execute], http: example.org, path: /admin/**}

    # Which models it may call, and for how much.
    #
    # models: {provider: openai, allow: [gpt-5.2], budget: {tokens: 200_000, usd: 5}}

    # Which credential it borrows, for which host, in which header.
    #
    # credentials: [{use: config-token, for: config.internal, as: "Authorization: Bearer {value}"}]
"""

AGENT = '''\
"""An agent, as far as Bailiwick is concerned: any program. This one reads a page, tries what it may not, and leaves a note in its workspace."""

import sys
import urllib.error
import urllib.request
from pathlib import Path

task = " ".join(sys.argv[1:]) or "say hello"
print(f"task: {task}")


def attempt(method: str, url: str) -> str:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=20) as answer:
            return f"{answer.status}"
    except urllib.error.HTTPError as refused:
        return f"{refused.code} {refused.reason}"
    except OSError as failed:
        return f"no answer: {failed}"


for method, url in [("GET", "https://example.org/"), ("GET", "https://example.org/admin/"), ("POST", "https://elsewhere.example/")]:
    print(f"{method} {url}: {attempt(method, url)}")

Path("note.txt").write_text(f"{task}\\n")
'''

POLICIES = """\
# Policies

The boundary in `bailiwick.yaml` is compiled to Cedar; `bailiwick policy show hello` prints the result.

Files named `*.cedar` in this directory are added to it, for every agent. They may narrow what an agent may do, in ways the boundary has no
words for. `bailiwick check` validates them against the schema, with file, line and column.

    bailiwick check
    bailiwick policy show hello
"""


def files(operator: str) -> dict[Path, str]:
    """Relative path and content."""
    return {
        Path("bailiwick.yaml"): CONFIGURATION.replace("@OPERATOR@", operator),
        Path("agents/hello/agent.py"): AGENT,
        Path("policies/README.md"): POLICIES,
    }
