"""Model calls: what a request to a model endpoint asks for, and what its answer used.

`calls` reads a request's body before the decision and bounds what the call may cost; `answers` knows what each endpoint sends back, for the tap in
`gateway/usage.py`. Pure: bytes in, values out.

Never: take a call whose cost has no bound; believe a number of a peer's without one.
"""

from bailiwick.gateway.models.answers import ModelUsage, ToolCall
from bailiwick.gateway.models.calls import ModelCall, endpoint_of, read_call

__all__ = ["ModelCall", "ModelUsage", "ToolCall", "endpoint_of", "read_call"]
