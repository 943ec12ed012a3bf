"""A cursor over the bytes of an artifact, and what reading may raise; closed, as decoder.py is."""

from __future__ import annotations


class ArtifactError(Exception):
    """Bytes that are not an artifact, or a damaged one; names what was found and where."""


class Reader:
    """A cursor that never reads past the end."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.data, self.at = memoryview(data), 0

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise ArtifactError(
                f"the file ends early: {count} bytes wanted at offset {self.at}, "
                f"{len(self.data) - self.at} left"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        """Little-endian base 128, at most nine bytes."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ArtifactError(f"a length at offset {self.at} has more than nine bytes")

    def stream(self) -> tuple[int, memoryview]:
        coder = self.take(1)[0]
        return coder, self.take(self.varint())
