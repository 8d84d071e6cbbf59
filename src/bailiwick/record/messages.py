"""What other processes say to the recorder, and what it answers. There is no message that changes or removes an event."""

import msgspec

from bailiwick.kernel.channel import Message, Service


class AppendEvents(Message, frozen=True):
    """Events in canonical form, in order. Answered by EventsAppended after the commit, or by a failure and nothing is written. An event whose id is
    in the record already is not written again: its writer may send it again after a broken connection."""

    events: list[str]


class EventsAppended(Message, frozen=True):
    """The sequence number of each event, in the order sent."""

    sequences: list[int]


class SubscribeEvents(Message, frozen=True):
    """From the governor: every event from this sequence number on, as it is committed, told as EventsCommitted."""

    sequence: int


class EventsCommitted(Message, frozen=True):
    """Leaves as hashed (`record.leaf`), from sequence number `first` on."""

    first: int
    leaves: list[str]


class TakeCheckpoint(Message, frozen=True):
    """Sign the head of the tree as it is now (a run has ended). Answered by CheckpointTaken."""


class CheckpointTaken(Message, frozen=True):
    note: str


class RecordHead(msgspec.Struct, frozen=True):
    """The size and root (hex) of the tree."""

    size: int
    root: str


RECORDER = Service("recorder", 1, [AppendEvents, EventsAppended, SubscribeEvents, EventsCommitted, TakeCheckpoint, CheckpointTaken])
