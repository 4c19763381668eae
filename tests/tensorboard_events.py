"""Reads TensorBoard's event files, without TensorBoard."""

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def read_scalars(directory: Path) -> dict[tuple[int, str], float]:
    """Returns {(step, name): value} of all event files of a folder; each record is length, CRC, data, CRC."""
    scalars = {}
    for path in sorted(directory.glob("events.out.tfevents.*")):
        content, position = path.read_bytes(), 0
        while position < len(content):
            (length,) = struct.unpack_from("<Q", content, position)
            event = Event.FromString(content[position + 12 : position + 12 + length])
            position += 16 + length
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    scalars[event.step, value.tag] = value.simple_value
    return scalars
