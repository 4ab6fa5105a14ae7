"""Reads fields of an answer. What is unknown is ignored: it comes from a newer agent."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Callable, Mapping, Optional, Tuple, TypeVar

from ._errors import ProtocolError

T = TypeVar("T")


def shape(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError(f"{name}: no object: {value!r:.100}")
    return value


def required(shape: Mapping[str, Any], key: str, read: Callable[[object], T]) -> T:
    if key not in shape:
        raise ProtocolError(f"an answer without its field `{key}`")
    return _read(key, shape[key], read)


def optional(shape: Mapping[str, Any], key: str, read: Callable[[object], T]) -> Optional[T]:
    value = shape.get(key)
    return None if value is None else _read(key, value, read)


def default(shape: Mapping[str, Any], key: str, read: Callable[[object], T], otherwise: T) -> T:
    value = shape.get(key)
    return otherwise if value is None else _read(key, value, read)


def _read(key: str, value: object, read: Callable[[object], T]) -> T:
    try:
        return read(value)
    except _WrongType as wrong:
        raise ProtocolError(f"`{key}`: {value!r:.100} is no {wrong}") from None


class _WrongType(Exception):
    """What a value is not."""


def anything(value: object) -> Any:
    return value


def text(value: object) -> str:
    if not isinstance(value, str):
        raise _WrongType("text")
    return value


def boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise _WrongType("boolean")
    return value


def integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _WrongType("integer")
    return value


def number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _WrongType("number")
    return float(value)


def timestamp(value: object) -> datetime:
    """RFC 3339 in UTC, as an aware `datetime`."""
    try:
        # Python 3.10 reads no Z.
        return datetime.fromisoformat(text(value).replace("Z", "+00:00"))
    except ValueError:
        raise _WrongType("time") from None


def items(read: Callable[[object], T]) -> Callable[[object], Tuple[T, ...]]:
    def all_of(value: object) -> Tuple[T, ...]:
        if not isinstance(value, list):
            raise _WrongType("list")
        return tuple(read(item) for item in value)

    return all_of
