"""The conformance vectors of docs/vectors: what a client reads."""

from __future__ import annotations

import json
import unittest
from pathlib import Path
from typing import Any, List, Union

from mvm_agent import AgentError, MvmError
from mvm_agent import _codec as codec
from mvm_agent import _shapes as shapes

VECTORS = Path(__file__).resolve().parents[3] / "docs" / "vectors"

#: How each answer's shape is read.
READ = {
    "hello": shapes.Hello.read,
    "status": shapes.Status.read,
    "inspect": shapes.Inspect.read,
    "checked": shapes.Checked.read,
    "reloaded": shapes.Reloaded.read,
    "event": shapes.Event.read,
    "ready": shapes.Ready.read,
    "awake": shapes.Awake.read,
}


def vectors(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def as_bytes(pieces: Union[str, List[Any]]) -> bytes:
    if isinstance(pieces, str):
        return bytes.fromhex(pieces)
    return b"".join(
        bytes.fromhex(piece)
        if isinstance(piece, str)
        else bytes.fromhex(piece["hex"]) * piece["times"]
        for piece in pieces
    )


def read_answer(content: bytes) -> str:
    """The type of the one answer in these bytes, in pieces of a byte."""
    decoder = codec.Decoder()
    frame = None
    for at in range(len(content)):
        assert frame is None
        decoder.feed(content[at : at + 1])
        frame = decoder.next()
    assert frame is not None and decoder.size == 0
    try:
        body = codec.answer(frame, "pong", *READ)
    except AgentError:
        return "error"
    kind = str(body["type"])
    if kind in READ:
        READ[kind](body)
    return kind


class Answers(unittest.TestCase):
    def test_answers_are_read_as_the_vectors_say(self) -> None:
        cases = vectors("answers.json")["cases"]
        self.assertGreater(len(cases), 20)
        for case in cases:
            with self.subTest(case["name"]):
                content = as_bytes(case["bytes"])
                if case["reads"] is None:
                    with self.assertRaises((MvmError, AssertionError)):
                        read_answer(content)
                else:
                    self.assertEqual(read_answer(content), case["reads"])


class Handshake(unittest.TestCase):
    def test_the_line_is_the_vectors_line(self) -> None:
        first = vectors("handshake.json")["connect"][0]
        self.assertEqual(codec.connect_line(codec.PORT), bytes.fromhex(first["bytes"]))

    def test_what_answers_is_taken_or_refused_as_the_vectors_say(self) -> None:
        for case in vectors("handshake.json")["ok"]:
            for size in (1, 1000):
                with self.subTest(case["name"], size=size):
                    content = bytes.fromhex(case["bytes"])
                    self.assertEqual(goes_on(content, size), case["accepted"])


def goes_on(content: bytes, size: int) -> bool:
    handshake = codec.Handshake()
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    try:
        for piece in pieces + [b""]:
            if handshake.feed(piece) is not None:
                return True
    except MvmError:
        pass
    return False


if __name__ == "__main__":
    unittest.main()
