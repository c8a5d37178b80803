"""Frames as bytes: hyperframe reads what we write; malformed frames get the error code of RFC 9113."""

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given
from hypothesis import strategies as st

from serving.transports.http.http2 import frames
from serving.transports.http.http2.frames import ConnectionBroken, ErrorCode, Setting
from tests.serving.transports.http.http2.wire import parse_frames

numbers = st.integers(1, 2**31 - 1)
payloads = st.binary(max_size=300) | st.sampled_from([bytes(2**14), b"x" * (2**14 - 1)])


@given(number=numbers, payload=payloads, ends=st.booleans())
def test_hyperframe_reads_data_as_it_was_written(number: int, payload: bytes, *, ends: bool) -> None:
    """Length, flags, stream and payload."""
    (read,) = parse_frames(frames.frame(frames.DATA, frames.END_STREAM if ends else 0, number, payload))
    assert isinstance(read, DataFrame)
    assert (read.stream_id, read.data) == (number, payload)
    assert ("END_STREAM" in read.flags) == ends


@given(stream=numbers, more=numbers, code=st.sampled_from(ErrorCode), last=st.integers(0, 2**31 - 1))
def test_hyperframe_reads_frames_with_numbers(stream: int, more: int, code: ErrorCode, last: int) -> None:
    """RST_STREAM, WINDOW_UPDATE and GOAWAY."""
    message = "why: naïve"
    reset, update, goaway = parse_frames(
        frames.reset(stream, code) + frames.window_update(stream, more) + frames.goaway(last, code, message)
    )
    assert isinstance(reset, RstStreamFrame)
    assert (reset.stream_id, reset.error_code) == (stream, code)
    assert isinstance(update, WindowUpdateFrame)
    assert (update.stream_id, update.window_increment) == (stream, more)
    assert isinstance(goaway, GoAwayFrame)
    assert (goaway.last_stream_id, goaway.error_code) == (last, code)
    assert goaway.additional_data == message.encode()


@given(st.dictionaries(st.sampled_from(Setting), st.integers(0, 2**32 - 1)))
def test_hyperframe_reads_settings_as_they_were_written(values: dict[Setting, int]) -> None:
    """Any value for any key."""
    (read,) = parse_frames(frames.settings(values))
    assert isinstance(read, SettingsFrame)
    assert read.settings == values


@given(length=st.integers(0, 5 * 2**14), stream=numbers, ends=st.booleans())
def test_a_long_header_block_continues_in_continuation(length: int, stream: int, *, ends: bool) -> None:
    """No frame is over 16 KiB; only the last has END_HEADERS, only the first END_STREAM."""
    block = bytes(index % 251 for index in range(length))
    first, *others = parse_frames(frames.headers(block, stream, frames.END_STREAM if ends else 0))
    assert isinstance(first, HeadersFrame)
    assert all(isinstance(each, ContinuationFrame) for each in others)
    every = [first, *others]
    assert b"".join(each.data for each in every) == block
    assert all(each.body_len <= 2**14 and each.stream_id == stream for each in every)
    assert ["END_HEADERS" in each.flags for each in every] == [False] * len(others) + [True]
    assert ["END_STREAM" in each.flags for each in every] == [ends] + [False] * len(others)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            SettingsFrame.ENABLE_PUSH: st.integers(0, 1),
            SettingsFrame.INITIAL_WINDOW_SIZE: st.integers(0, 2**31 - 1),
            SettingsFrame.MAX_FRAME_SIZE: st.integers(2**14, 2**24 - 1),
            SettingsFrame.MAX_CONCURRENT_STREAMS: st.integers(0, 2**32 - 1),
            0xFD: st.integers(0, 2**32 - 1),
        },
    )
)
def test_all_valid_settings_are_read(values: dict[int, int]) -> None:
    """Including unknown settings, which must be ignored."""
    assert frames.read_settings(SettingsFrame(0, values).serialize_body()) == values


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (bytes(5), ErrorCode.FRAME_SIZE_ERROR),
        (bytes(7), ErrorCode.FRAME_SIZE_ERROR),
        (SettingsFrame(0, {2: 2}).serialize_body(), ErrorCode.PROTOCOL_ERROR),
        (SettingsFrame(0, {4: 2**31}).serialize_body(), ErrorCode.FLOW_CONTROL_ERROR),
        (SettingsFrame(0, {5: 2**14 - 1}).serialize_body(), ErrorCode.PROTOCOL_ERROR),
        (SettingsFrame(0, {5: 2**24}).serialize_body(), ErrorCode.PROTOCOL_ERROR),
    ],
    ids=["short", "long", "push 2", "window over 2^31-1", "frames under 2^14", "frames over 2^24-1"],
)
def test_invalid_settings_are_connection_errors(payload: bytes, code: ErrorCode) -> None:
    """RFC 9113, sections 6.5 and 6.5.2."""
    with pytest.raises(ConnectionBroken) as caught:
        frames.read_settings(payload)
    assert caught.value.code is code


@given(st.integers(0, 2**32 - 1), st.binary(max_size=8).filter(lambda payload: len(payload) != 4))
def test_a_number_has_four_bytes(number: int, other: bytes) -> None:
    """Otherwise FRAME_SIZE_ERROR for the connection: RFC 9113, sections 6.4 and 6.9."""
    assert frames.read_number(number.to_bytes(4, "big"), "WINDOW_UPDATE") == number
    with pytest.raises(ConnectionBroken, match=f"RST_STREAM has {len(other)} bytes, expected 4") as caught:
        frames.read_number(other, "RST_STREAM")
    assert caught.value.code is ErrorCode.FRAME_SIZE_ERROR


@given(payload=st.binary(max_size=300), padding=st.none() | st.integers(0, 255), has_priority=st.booleans())
def test_padding_and_priority_are_removed(payload: bytes, padding: int | None, *, has_priority: bool) -> None:
    """For all padding and priority that hyperframe writes."""
    written = HeadersFrame(1, payload, stream_weight=7)
    if padding is not None:
        written.flags.add("PADDED")
        written.pad_length = padding
    if has_priority:
        written.flags.add("PRIORITY")
    body = written.serialize_body()
    flags = frames.PADDED * (padding is not None) | frames.HAS_PRIORITY * has_priority
    assert frames.unpadded(body, flags) == payload


@given(length=st.integers(1, 255), more=st.integers(0, 255))
def test_padding_of_the_whole_frame_or_more_is_a_connection_error(length: int, more: int) -> None:
    """PROTOCOL_ERROR: RFC 9113, section 6.1."""
    padding = min(length + more, 255)
    with pytest.raises(ConnectionBroken) as caught:
        frames.unpadded(bytes([padding]) + bytes(length - 1), frames.PADDED)
    assert caught.value.code is ErrorCode.PROTOCOL_ERROR


@pytest.mark.parametrize("flags", [frames.PADDED, frames.HAS_PRIORITY, frames.PADDED | frames.HAS_PRIORITY])
def test_a_frame_without_its_padding_length_is_a_connection_error(flags: int) -> None:
    """It is not treated as an empty frame."""
    with pytest.raises(ConnectionBroken):
        frames.unpadded(b"", flags)
