"""Every wait has a deadline, every queue a bound, every retry a count. Units are in the names; a limit an operator may set is a default here."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# Messages between our processes.
FRAME_BYTES_MAX = 4 * MIB  # the largest is a held request's body shown to a person, base64
CALL_SECONDS_MAX = 10.0
CONNECT_SECONDS_MAX = 5.0
DESCRIPTORS_PER_MESSAGE_MAX = 32  # the kernel's SCM_MAX_FD is 253
REQUESTS_IN_FLIGHT_MAX = 4_096  # of one connection; a peer that asks for more is told to ask later
CONNECTIONS_PER_UID_MAX = 64  # of one service; as an ordinary user all our processes share a uid

# The governor's heartbeat: who hears none for this long stops what it does.
HEARTBEAT_SECONDS = 1.0
HEARTBEAT_STALE_SECONDS = 3.0

# The record.
EVENT_BYTES_MAX = 256 * KIB
EVENTS_UNACKNOWLEDGED_MAX = 10_000
CHECKPOINT_SECONDS_MAX = 1.0

# The data path.
HEAD_BYTES_MAX = 64 * KIB  # nginx: 4 x 8 KiB; Node: 16 KiB; large cookies exist
HEADER_FIELDS_MAX = 128
HEAD_SECONDS_MAX = 30.0
BODY_BUFFER_BYTES_MAX = 16 * MIB  # a body read before its decision (a model call, a held write)
HELD_BODY_SHOWN_BYTES_MAX = 64 * KIB
IDLE_SECONDS_MAX = 120.0
UPSTREAM_CONNECT_SECONDS_MAX = 10.0
UPSTREAM_ANSWER_SECONDS_MAX = 600.0  # a reasoning model may be silent for minutes before its first byte
CONNECTIONS_PER_RUN_MAX = 2_048
NAMES_PER_RUN_MAX = 8_192

# A run's defaults; the configuration's `limits` may set each.
RUN_WALL_SECONDS = 30 * 60
RUN_MEMORY_BYTES = 1 * GIB
RUN_DISK_BYTES = 1 * GIB
RUN_PIDS = 256
RUN_OPEN_FILES = 1_024
HOLD_WAIT_SECONDS = 10 * 60
HOLD_EXPIRES_SECONDS = 2 * 60 * 60

RUN_PARKED_SECONDS_MAX = 24 * 60 * 60  # in all: so long a run's wall clock may stand still for sign-off

# Cleaning up is shielded and bounded.
STOP_SECONDS_MAX = 10.0
