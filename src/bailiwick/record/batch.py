"""Events that leave a writer as one message."""

import asyncio


class Batch:
    """What leaves as one message. `waiting` are those of its events that somebody waits for, by their place in it."""

    __slots__ = ("at", "size", "texts", "waiting")

    def __init__(self, at: float) -> None:
        self.texts: list[str] = []
        self.size = 0
        self.at = at  # when the first was appended
        self.waiting: list[tuple[int, asyncio.Future[int]]] = []

    def singly(self) -> "list[Batch]":
        """Each in a message of its own."""
        waiting = dict(self.waiting)
        singles: list[Batch] = []
        for place, text in enumerate(self.texts):
            single = Batch(self.at)
            single.texts.append(text)
            single.size = len(text)
            if place in waiting:
                single.waiting.append((0, waiting[place]))
            singles.append(single)
        return singles
