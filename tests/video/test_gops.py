"""Laws of leaving packets out: whatever is wanted can still be decoded exactly."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from streammem.video import container
from streammem.video.container import needed_parts


@dataclass(frozen=True)
class FakePacket:
    pts: int | None
    is_keyframe: bool
    gop: int  # number of the keyframe that it follows in decode order
    is_leading: bool


@st.composite
def streams(draw):
    """Packets in decode order, with open GOPs, and which of them are wanted."""
    items, pts = [], 0
    for gop in range(draw(st.integers(1, 6))):
        num_leading = draw(st.integers(0, 3)) if gop else 0
        key = pts + num_leading
        items.append(FakePacket(key, True, gop, False))
        items += [FakePacket(pts + k, False, gop, True) for k in range(num_leading)]
        num_rest = draw(st.integers(0, 6))
        items += [FakePacket(key + 1 + k, False, gop, False) for k in range(num_rest)]
        pts = key + 1 + num_rest
    wanted = draw(st.lists(st.booleans(), min_size=len(items), max_size=len(items)))
    return list(zip(items, wanted, strict=True))


@given(streams())
def test_every_wanted_packet_is_kept_once_and_in_order(items):
    kept = [packet for part, _ in needed_parts(items) for packet, _ in part]
    assert kept == [p for p, _ in items if p in kept]
    assert {p for p, wanted in items if wanted} <= set(kept)


@given(streams())
def test_what_a_wanted_packet_needs_is_kept(items):
    kept = {packet for part, _ in needed_parts(items) for packet, _ in part}
    for number, (packet, wanted) in enumerate(items):
        if not wanted:
            continue
        first_gop = packet.gop - packet.is_leading
        needed = [p for p, _ in items[:number] if p.gop >= first_gop]
        # Only leading pictures of the same GOP refer to leading pictures.
        family = packet.gop if packet.is_leading else None
        assert {p for p in needed if not p.is_leading or p.gop == family} <= kept


@given(streams())
def test_after_something_is_left_out_a_keyframe_comes_without_its_leading_pictures(items):
    fresh = False
    for part, is_cut in needed_parts(items):
        if fresh and part:
            assert part[0][0].is_keyframe
            assert not any(p.is_leading and p.gop == part[0][0].gop for p, _ in part)
        fresh = is_cut if part or is_cut else fresh


@given(streams())
def test_gops_without_a_wanted_packet_are_left_out_but_for_the_last(items):
    kept = {packet.gop for part, _ in needed_parts(items) for packet, _ in part}
    useful = {p.gop for p, wanted in items if wanted}
    useful |= {p.gop - 1 for p, wanted in items if wanted and p.is_leading}
    assert kept <= useful | {items[-1][0].gop}


def test_an_endless_gop_holds_back_a_bounded_number_of_packets(monkeypatch):
    monkeypatch.setattr(container, "MAX_HELD", 10)
    items = [(FakePacket(k, k == 0, 0, False), k % 7 == 0) for k in range(1000)]
    parts = list(needed_parts(items))
    assert max(len(part) for part, _ in parts) <= 11
    assert [item for part, _ in parts for item in part] == items
    assert not any(is_cut for _, is_cut in parts)
