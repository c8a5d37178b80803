"""Messages from and to JSON, for Connect. protobuf's json_format is pure Python: 5 to 15 us an element.

Requests are counted before they are parsed. What takes more than a few milliseconds is done in a thread, one
message at a time, so that the event loop has to wait for the interpreter's lock only.
"""

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from serving.rpc.field_limit import MAX_TEXT_BYTES
from serving.rpc.handlers import Failure
from serving.rpc.status import Code, Status

# Decoding base64 holds the interpreter's lock: 4 MiB for 7 ms. With 8 MiB, one client delayed the others by
# up to 77 ms.
MAX_JSON_BYTES = 4 * 2**20
# 128 images of decoded pixels have 768.
MAX_JSON_ELEMENTS = 4096

# Up to these limits, a message is converted on the event loop.
_SMALL_BYTES = 2**17
_SMALL_ELEMENTS = 128
_SMALL_ANSWER_BYTES = 2**11  # about 100 labels
_thread = ThreadPoolExecutor(1, thread_name_prefix="json")


async def to_request(method: str, text: bytes) -> bytes:
    """Return the request of a method, serialized.

    Args:
        method: /package.Service/Method.
        text: at most MAX_JSON_BYTES.

    Raises:
        Failure: it has too many elements, a text that is too long, or cannot be parsed.
    """
    elements = sum(_count(character, text) for character in (b",", b"{", b"["))
    if elements > MAX_JSON_ELEMENTS:
        raise _invalid(
            f"a request in JSON has more than {MAX_JSON_ELEMENTS} elements, the limit: "
            "send tensors as bytes, or the request as application/proto"
        )
    if len(text) <= _SMALL_BYTES and elements <= _SMALL_ELEMENTS:
        return _from_json(method, text)
    return await asyncio.get_running_loop().run_in_executor(_thread, _from_json, method, text)


async def to_answer(method: str, answer: bytes) -> bytes:
    """Return the answer of a method in JSON."""
    if len(answer) <= _SMALL_ANSWER_BYTES:
        return _to_json(method, answer)
    return await asyncio.get_running_loop().run_in_executor(_thread, _to_json, method, answer)


def _count(character: bytes, text: bytes) -> int:
    """Count a character up to the limit. `find` takes 0.1 ms for 8 MB if it is rare, `count` always 2 ms."""
    count = at = 0
    while count <= MAX_JSON_ELEMENTS and (at := text.find(character, at) + 1):
        count += 1
    return count


def _from_json(method: str, text: bytes) -> bytes:
    request = message_factory.GetMessageClass(_method(method).input_type)()
    try:
        json_format.ParseDict(_members(text, request.DESCRIPTOR), request)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise _invalid(
            f"cannot parse the request as {request.DESCRIPTOR.full_name} in JSON: {error}"
        ) from error
    serialized: bytes = request.SerializeToString()
    return serialized


def _members(text: bytes, message: Any) -> dict[str, Any]:  # noqa: ANN401 - a descriptor
    members = json.loads(text, object_pairs_hook=partial(_object, _names_of_bytes(message)))
    if not isinstance(members, dict):
        raise json_format.ParseError("it is not an object: put its fields into braces")
    return members


def _object(names_of_bytes: frozenset[str], members: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the members of an object. No text is long: json_format searches each, 20 ns a character."""
    unique = dict(members)
    if len(unique) < len(members):
        raise json_format.ParseError("an object has two members of one name: send each once")
    for name, value in members:
        texts = () if name in names_of_bytes else value if isinstance(value, list) else (value,)
        for each in (name, *texts):
            if isinstance(each, str) and len(each) > MAX_TEXT_BYTES:
                raise json_format.ParseError(
                    f"a text of the request has {len(each)} characters, limit is {MAX_TEXT_BYTES}: shorten it"
                )
    return unique


@cache
def _names_of_bytes(message: Any) -> frozenset[str]:  # noqa: ANN401 - a descriptor
    """Return the names of the fields that hold bytes, of a message type and of those in it."""
    names: set[str] = set()
    for field in message.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            names |= _names_of_bytes(field.message_type)
        elif field.type == FieldDescriptor.TYPE_BYTES:
            names |= {field.name, field.json_name}
    return frozenset(names)


def _to_json(method: str, answer: bytes) -> bytes:
    """Convert element by element: json.dumps would hold the interpreter's lock for the whole message."""
    message = message_factory.GetMessageClass(_method(method).output_type).FromString(answer)
    lists = {}
    for field, values in message.ListFields():
        if field.is_repeated and field.message_type and not field.message_type.GetOptions().map_entry:
            lists[field] = ", ".join(map(_text, values))
    for field in lists:
        message.ClearField(field.name)
    members = [_text(message)[1:-1], *(f'"{field.json_name}": [{text}]' for field, text in lists.items())]
    return ("{" + ", ".join(filter(None, members)) + "}").encode()


def _text(message: Message) -> str:
    return json_format.MessageToJson(message, indent=None)


def _method(name: str) -> Any:  # noqa: ANN401 - a descriptor
    service, _, method = name[1:].partition("/")
    return descriptor_pool.Default().FindMethodByName(f"{service}.{method}")


def _invalid(message: str) -> Failure:
    return Failure(Status(Code.INVALID_ARGUMENT, "INVALID_REQUEST", message))
