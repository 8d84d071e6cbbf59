"""Where an installation keeps what it keeps: one directory, one subdirectory for each process that writes, one for the sockets."""

import os
from dataclasses import dataclass
from pathlib import Path

SOCKET_PATH_BYTES_MAX = 107  # sun_path of unix(7) is 108 with its NUL


@dataclass(frozen=True, slots=True)
class Layout:
    root: Path

    @classmethod
    def default(cls) -> "Layout":
        """BAILIWICK_STATE if set; /var/lib/bailiwick for root; the user's state directory (XDG) otherwise."""
        if chosen := os.environ.get("BAILIWICK_STATE"):
            return cls(Path(chosen).absolute())
        if os.getuid() == 0:
            return cls(Path("/var/lib/bailiwick"))
        state = Path(os.environ.get("XDG_STATE_HOME", ""))
        if not state.is_absolute():  # unset, empty, or to be ignored as the specification says
            state = Path("~/.local/state").expanduser()
        return cls(state / "bailiwick")

    @property
    def sockets(self) -> Path:
        return self.root / "run"

    def socket(self, name: str) -> str:
        """`recorder`, `signer`, `broker`, `launcher`, `api`, and for each gateway worker `gateway-N` and `gateway-N.adopt`."""
        return str(self.sockets / f"{name}.sock")

    @property
    def record(self) -> Path:
        """The recorder's: record.db, read by the governor."""
        return self.root / "record"

    @property
    def broker(self) -> Path:
        """The broker's: the checkpoint key, the size signed last."""
        return self.root / "broker"

    @property
    def governor(self) -> Path:
        """The governor's: state.db, collected workspaces."""
        return self.root / "governor"

    @property
    def sandboxes(self) -> Path:
        """The launcher's: one directory a run, gone with it."""
        return self.root / "sandboxes"

    @property
    def logs(self) -> Path:
        """What the processes say on standard error, a file each."""
        return self.root / "logs"
