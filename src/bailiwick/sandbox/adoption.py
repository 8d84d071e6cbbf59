"""Adoption: how the launcher hands a run's descriptors to the gateway worker that serves it. The worker listens, the launcher calls."""

from bailiwick.kernel import limits
from bailiwick.kernel.channel import Message, Service


class AdoptRun(Message, frozen=True):
    """With descriptors in the order of `names`: `tcp:PORT` (listening, dual-stack), `udp:53`, `tap` (a packet socket that sees attempts on what is not
    served), `stdout`, `stderr` (pipes of the agent's command). They replace those held before. Answered by Done when they are served."""

    run: str
    names: list[str]


ADOPTION = Service("adoption", 1, [AdoptRun], descriptors_max=limits.DESCRIPTORS_PER_MESSAGE_MAX)
