"""A clerk on the openai-agents SDK: streams the Responses API and has two tools, each an HTTP call. It has never heard of Bailiwick."""

import asyncio
import sys

import httpx
from agents import Agent, Runner, function_tool, set_tracing_disabled

set_tracing_disabled(True)
ORDERS = "https://orders.internal/v1/orders"


@function_tool
def look_up(order: str) -> str:
    """The state of an order."""
    return httpx.get(f"{ORDERS}/{order}", timeout=30).text


@function_tool
def refund(order: str, amount: int) -> str:
    """Pay an order back."""
    answer = httpx.post(f"{ORDERS}/{order}/refunds", json={"amount": amount}, timeout=600)
    return f"{answer.status_code}: {answer.text}"


async def main(task: str) -> None:
    agent = Agent(name="clerk", instructions="Answer with the tools.", model="gpt-5.2", tools=[look_up, refund])
    result = Runner.run_streamed(agent, task)
    pieces = 0
    async for event in result.stream_events():
        pieces += event.type == "raw_response_event"
    print(f"{pieces} events streamed")
    print(result.final_output)


asyncio.run(main(sys.argv[1]))
