"""Frames: what is encoded is found again, and damage is told from the tail."""

from __future__ import annotations

from flerm_client.spool.frames import OVERHEAD, Damage, Frame, FrameType, encode, parse

FIRST, SECOND = encode(FrameType.OWNER, b"{}"), encode(FrameType.GAP, b"payload")


def test_frames_are_found_with_the_offsets_after_them():
    found, tail = parse(FIRST + SECOND, 16)
    ends = (16 + OVERHEAD + 2, 16 + 2 * OVERHEAD + 9)
    assert found == [Frame(1, b"{}", ends[0]), Frame(4, b"payload", ends[1])]
    assert tail == ends[1]


def test_bytes_before_a_valid_frame_are_damage_and_bytes_after_the_last_one_are_the_tail():
    found, tail = parse(FIRST + b"xyz" + SECOND + SECOND[:-1], 0)
    at = len(FIRST)
    assert [each for each in found if isinstance(each, Damage)] == [Damage(at, at + 3)]
    assert str(Damage(at, at + 3)) == f"3 damaged bytes at {at}"
    assert tail == at + 3 + len(SECOND)


def test_a_frame_of_a_later_version_is_valid():
    found, _ = parse(encode(9, b"new"), 0)
    assert [(each.type, each.payload) for each in found] == [(9, b"new")]


def test_a_marker_within_a_payload_does_not_begin_a_frame():
    whole = encode(FrameType.GAP, FIRST)
    damaged = bytes([whole[0] ^ 1]) + whole[1:]
    found, tail = parse(damaged, 0)
    # Once the outer frame is damaged, the frame in its payload is valid by itself.
    assert found == [Damage(0, OVERHEAD), Frame(1, b"{}", len(whole))]
    assert tail == len(whole)
    assert parse(whole, 0)[0] == [Frame(4, FIRST, len(whole))]
