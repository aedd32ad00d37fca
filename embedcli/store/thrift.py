"""Thrift's compact protocol, as far as Parquet's footers need it: bytes into values and back.

Nothing is known of what the values mean: a struct is a list of its fields with their numbers, so
that fields of any version pass through unchanged. Source: the Apache Thrift repository,
doc/specs/thrift-compact-protocol.md.
"""

import struct
from typing import Any, NamedTuple

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT, UUID = range(1, 14)
# Parquet's own footers are some five deep.
_MAX_DEPTH = 32


class Field(NamedTuple):
    """A field of a struct: its number, the type of its value, its value."""

    number: int
    type: int
    value: Any


class Items(NamedTuple):
    """A list or a set, and the type of its items. To write, structs may be given as bytes."""

    type: int
    values: list[Any]


Struct = list[Field]


def get(value: Struct, number: int) -> Any:
    """Return the value of a field; None where the struct has none of the number."""
    return next((field.value for field in value if field.number == number), None)


def put(value: Struct, number: int, kind: int, new: Any) -> Struct:
    """Return a struct with another value in a field; None removes it."""
    fields = [field for field in value if field.number != number]
    if new is not None:
        fields.append(Field(number, kind, new))
    return sorted(fields, key=lambda field: field.number)


def parse(content: bytes) -> Struct:
    """Read a struct. Raises ValueError where the bytes hold none."""
    return parse_first(content)[0]


def parse_first(content: bytes) -> tuple[Struct, int]:
    """Read the struct that bytes begin with, and tell its length. Raises ValueError where there is
    none.
    """
    reader = _Reader(content)
    try:
        return reader.struct(_MAX_DEPTH), reader.position
    except (IndexError, struct.error):
        raise ValueError("the bytes end within a value") from None


class _Reader:
    """Reads values one after another."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.position = 0

    def _byte(self) -> int:
        self.position += 1
        return self._content[self.position - 1]

    def _take(self, size: int) -> bytes:
        if size > len(self._content) - self.position:
            raise ValueError("the bytes end within a value")
        self.position += size
        return self._content[self.position - size : self.position]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def struct(self, depth: int) -> Struct:
        if not depth:
            raise ValueError("values are nested too deep")
        fields: Struct = []
        number = 0
        while header := self._byte():
            kind, delta = header & 0x0F, header >> 4
            number = number + delta if delta else self._zigzag()
            # A field of a truth value has it in its type.
            value = kind == TRUE if kind in (TRUE, FALSE) else self._value(kind, depth)
            fields.append(Field(number, kind, value))
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        match kind:
            case 1 | 2:  # TRUE, FALSE: an item of a list
                return self._byte() == TRUE
            case 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._zigzag()
            case 7:
                return struct.unpack("<d", self._take(8))[0]
            case 8:
                return self._take(self._varint())
            case 9 | 10:
                return self._items(depth)
            case 12:
                return self.struct(depth - 1)
            case 13:
                return self._take(16)
        raise ValueError(f"a value of type {kind}")

    def _items(self, depth: int) -> Items:
        header = self._byte()
        kind, size = header & 0x0F, header >> 4
        size = self._varint() if size == 15 else size
        if size > len(self._content):
            raise ValueError("a list is longer than the bytes")
        return Items(kind, [self._value(kind, depth - 1) for _ in range(size)])


def to_bytes(value: Struct) -> bytes:
    """Return the bytes that `parse` reads."""
    content = bytearray()
    _write_struct(content, value)
    return bytes(content)


def _write_struct(content: bytearray, value: Struct) -> None:
    last = 0
    for field in value:
        kind = field.type
        if kind in (TRUE, FALSE):
            kind = TRUE if field.value else FALSE
        delta = field.number - last
        if 0 < delta <= 15:
            content.append(delta << 4 | kind)
        else:
            content.append(kind)
            _write_zigzag(content, field.number)
        if kind not in (TRUE, FALSE):
            _write_value(content, kind, field.value)
        last = field.number
    content.append(0)


def _write_value(content: bytearray, kind: int, value: Any) -> None:
    match kind:
        case 1 | 2:
            content.append(TRUE if value else FALSE)
        case 3:
            content.append(value)
        case 4 | 5 | 6:
            _write_zigzag(content, value)
        case 7:
            content += struct.pack("<d", value)
        case 8:
            _write_varint(content, len(value))
            content += value
        case 9 | 10:
            _write_items(content, value)
        case 12 if not isinstance(value, bytes):
            _write_struct(content, value)
        case _:  # as bytes already
            content += value


def _write_items(content: bytearray, items: Items) -> None:
    size = len(items.values)
    content.append(min(size, 15) << 4 | items.type)
    if size >= 15:
        _write_varint(content, size)
    for item in items.values:
        _write_value(content, items.type, item)


def _write_varint(content: bytearray, value: int) -> None:
    while value >= 0x80:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    content.append(value)


def _write_zigzag(content: bytearray, value: int) -> None:
    _write_varint(content, value << 1 if value >= 0 else (-value << 1) - 1)
