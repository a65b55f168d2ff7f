"""The line between a student's process and the judge's: questions and answers, of plain data, over a socket.

Both sides are the same: who has asked answers what the other asks back, a function that was lent to it, say, until the
answer to the own question has come.
"""

import json
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from course_utils.grading.plain import LARGEST

LONGEST = 16 << 20
"""Bytes of a message beside its arrays."""

_HEAD = struct.Struct("<QQ")

Message = tuple[dict[str, Any], bytes | bytearray]


class Broken(Exception):
    """The other side is gone, or says what is no message: nothing can be asked any more."""


class Peer:
    """One end of the line.

    Args:
        number: of the socket, which this process has inherited.
        answer: answers a question of the other side with a message; it raises nothing.
        alone: held while a question is under way, where several processes or threads may ask.
    """

    def __init__(
        self,
        number: int,
        answer: Callable[[dict[str, Any], bytes | bytearray], Message],
        alone: AbstractContextManager[Any] | None = None,
    ) -> None:
        self._socket = socket.socket(fileno=number)
        self._answer = answer
        self._alone = alone or threading.RLock()
        self._asked = 0

    def ask(self, question: dict[str, Any], row: bytes | bytearray = b"") -> Message:
        """The answer to a question.

        Raises:
            Broken: there will be none.
        """
        with self._alone:
            self._asked += 1
            number = self._asked  # a process that was forked may answer what was asked before
            self._send({**question, "asks": number}, row)
            while True:
                message, brought = self._receive()
                if "asks" in message:
                    self._reply(message, brought)
                elif message.get("answers") == number:
                    return message, brought

    def serve(self) -> None:
        """Answer questions until the other side is gone.

        Raises:
            Broken: it is.
        """
        while True:
            message, row = self._receive()
            if "asks" in message:  # else it is an answer to nothing
                self._reply(message, row)

    def _reply(self, question: dict[str, Any], row: bytes | bytearray) -> None:
        answer, brings = self._answer(question, row)
        self._send({**answer, "answers": question["asks"]}, brings)

    def _send(self, message: dict[str, Any], row: bytes | bytearray) -> None:
        told = json.dumps(message).encode()
        if len(told) > LONGEST:
            error = {"name": "ValueError", "text": "the result is too long to be sent"}
            told, row = json.dumps({"error": error, "answers": message.get("answers")}).encode(), b""
        try:
            self._socket.sendall(_HEAD.pack(len(told), len(row)))
            self._socket.sendall(told)
            self._socket.sendall(row)
        except OSError as error:
            raise Broken(str(error)) from None

    def _receive(self) -> Message:
        told, carried = _HEAD.unpack(self._read(_HEAD.size))
        if told > LONGEST or carried > LARGEST:
            raise Broken("a message is too long")
        text, row = self._read(told), self._read(carried)
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            raise Broken("a message is no JSON") from None
        if not isinstance(message, dict):
            raise Broken("a message is a dictionary")
        return message, row

    def _read(self, size: int) -> bytearray:
        """As many bytes; memory is asked for as they come."""
        found = bytearray()
        while len(found) < size:
            try:
                part = self._socket.recv(min(size - len(found), 1 << 20))
            except OSError as error:
                raise Broken(str(error)) from None
            if not part:
                raise Broken("the other side is gone")
            found += part
        return found
