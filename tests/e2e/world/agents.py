"""Agents nobody here wrote, and the scripts that drive them: `mini-swe-agent` as it is installed, and a program of a few lines around `openai-agents`.

Each is given by what starts it (`command`, `environment`) and by the script its model follows. Where they find their model and their key, whoever
runs them adds: OPENAI_BASE_URL and OPENAI_API_KEY, as for any client.
"""

from pathlib import Path

from bailiwick.cli.demo.scripts import Answer, Script, ToolCall, in_order, say

SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"  # how mini-swe-agent is told that the work is done

TOOLS_PROGRAM = '''\
"""An agent with two tools on the openai-agents SDK: it looks an order up and writes a note about it."""
import sys
from pathlib import Path

from agents import Agent, Runner, function_tool, set_tracing_disabled

set_tracing_disabled(True)


@function_tool
def look_up(order: str) -> str:
    """The state of an order."""
    return f"order {order} is paid"


@function_tool
def note(text: str) -> str:
    """Write a note."""
    Path("note.txt").write_text(text)
    return "noted"


agent = Agent(name="clerk", instructions="Answer with the tools.", model="scripted-clerk", tools=[look_up, note])
print(Runner.run_sync(agent, sys.argv[1]).final_output)
'''
TOOLS_SCRIPT: Script = in_order(
    Answer(calls=(ToolCall("look_up", {"order": "17"}),)),
    Answer("I note it.", (ToolCall("note", {"text": "order 17 is paid"}),)),
    say("Order 17 is paid; I left a note."),
)


def mini_swe_agent(task: str, *, program: str = "mini", model: str = "openai/scripted-engineer") -> tuple[list[str], dict[str, str]]:
    """Its command and environment: no terminal, no confirmation, no question at the end, state in the working directory."""
    command = [program, "--model", model, "--task", task, "--yolo", "--exit-immediately", "--cost-limit", "0", "--output", "trajectory.json"]
    environment = {
        "MSWEA_CONFIGURED": "true",
        "MSWEA_GLOBAL_CONFIG_DIR": ".mini",
        "MSWEA_SILENT_STARTUP": "1",
        "MSWEA_COST_TRACKING": "ignore_errors",  # it does not know what a scripted model costs
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else importing it asks a host outside for a price list
    }
    return command, environment


def engineer(*commands: str) -> Script:
    """Drives mini-swe-agent: each command by a call of its one tool, then the end."""
    steps = [Answer(f"Step {number}.", (ToolCall("bash", {"command": command}),)) for number, command in enumerate((*commands, SUBMIT), 1)]
    return in_order(*steps)


def tools_agent(directory: Path, task: str, *, python: str) -> tuple[list[str], dict[str, str]]:
    """Writes the openai-agents program into `directory` and says how it is started there."""
    (directory / "clerk.py").write_text(TOOLS_PROGRAM)
    return [python, "clerk.py", task], {}
