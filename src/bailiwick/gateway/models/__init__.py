"""Model calls: what a request to a model endpoint asks for, and what its answer used.

`calls` reads a request's body before the decision and bounds what the call may cost; `usage` taps a copy of the answer as it passes; `answers` knows what
each endpoint sends. Pure: bytes in, values out.

Never: delay or change a byte of the answer; believe a number without a bound.
"""

from bailiwick.gateway.models.answers import ModelUsage, ToolCall
from bailiwick.gateway.models.calls import ModelCall, endpoint_of, read_call
from bailiwick.gateway.models.usage import UsageTap

__all__ = ["ModelCall", "ModelUsage", "ToolCall", "UsageTap", "endpoint_of", "read_call"]
