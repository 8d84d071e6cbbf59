"""The demo's agent with nobody around it, in a network namespace of its own in which every address in the world answers: the control.

Run as root of fresh network and mount namespaces (`test_control` does that): python unsealed.py DIRECTORY. Prints what was reached, as JSON. The names
lead to loopback addresses, the documentation addresses and the metadata address are local here, and nothing leads out.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from bailiwick.cli.demo import configuration_service, scripts, story, world
from bailiwick.cli.demo.authority import Authority
from bailiwick.cli.demo.configuration_service import ConfigurationService
from bailiwick.cli.demo.model_server import ModelServer
from bailiwick.cli.demo.stranger import DatagramCounter
from bailiwick.cli.demo.web import Request, Response, Server
from bailiwick.sandbox.netlink import seal

NAMES = {configuration_service.NAME: "127.0.0.2", world.STRANGER_HOST: "127.0.0.3", world.MODEL_HOST: "127.0.0.4"}


def thank(_: Request) -> Response:
    return Response.json(200, {"thanks": "for everything"})


def main(directory: Path) -> None:
    seal()
    hosts = directory / "hosts"
    hosts.write_text("".join(f"{address} {name}\n" for name, address in NAMES.items()))
    subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)
    authority, keys = Authority.create("control"), world.Keys.fresh()
    (directory / "ca.pem").write_text(authority.pem)

    def at(name: str) -> dict[str, object]:
        return {"tls": authority.server_context(name), "address": (NAMES[name], 443)}

    model = ModelServer(key=keys.model, default=scripts.deployment(), **at(world.MODEL_HOST))  # type: ignore[arg-type]
    values = {f"{environment}/{scripts.KEY}": world.OLD_VALUE for environment in ("staging", "production")}
    tickets = {scripts.TICKET: scripts.TICKET_TEXT}
    service = ConfigurationService(token=keys.configuration, values=values, tickets=tickets, **at(configuration_service.NAME))  # type: ignore[arg-type]
    stranger = Server(thank, **at(world.STRANGER_HOST))  # type: ignore[arg-type]
    with contextlib.ExitStack() as running:
        for server in (model, service, stranger):
            running.enter_context(server)
        dialled = []
        for dial in scripts.DIALS:
            at_all = ("::" if ":" in dial.host else dial.host, dial.port)  # an IPv6 address that is local by a route alone cannot be bound
            tls = authority.server_context(dial.host) if dial.port == 443 else None
            counter = DatagramCounter(at_all) if dial.protocol == "udp" else Server(thank, tls=tls, address=at_all)
            dialled.append(running.enter_context(counter))
        environment = {
            "PATH": os.environ["PATH"],
            "SSL_CERT_FILE": str(directory / "ca.pem"),
            "OPENAI_API_KEY": keys.model,
            "OPENAI_BASE_URL": f"https://{world.MODEL_HOST}/v1",
            "CONFIG_TOKEN": keys.configuration,
        }
        command = [sys.executable, str(story._PROGRAM), story.TASK]
        done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=60)
        reached = [counter.connections if isinstance(counter, Server) else counter.received for counter in dialled]
        said = done.stdout + (directory / "summary.json").read_text()
        print(
            json.dumps(
                {
                    "status": done.returncode,
                    "errors": done.stderr,
                    "output": done.stdout,
                    "values": service.values,
                    "stranger": stranger.connections,
                    "dialled": reached,
                    "secrets_seen": [secret in said for secret in (keys.model, keys.configuration)],
                }
            )
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
