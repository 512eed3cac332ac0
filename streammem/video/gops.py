"""Which packets must be decoded to get the wanted frames: whole GOPs are left out, and tails.

A GOP (group of pictures) starts at a keyframe; to decode a frame, all packets of its GOP before
it are needed, none after it, and no other GOP. Nothing here decodes.
"""

from collections.abc import Iterable, Iterator

from av.packet import Packet

MAX_HELD = 512  # packets held back to find a GOP's last wanted one; bounds memory in endless GOPs

Item = tuple[Packet, bool]  # a packet in decode order, and whether its frame is wanted


def needed_parts(items: Iterable[Item]) -> Iterator[tuple[list[Item], bool]]:
    """Cut a stream of packets before keyframes, and leave out what no wanted frame needs.

    Args:
        items: the video packets in decode order.

    Yields:
        The packets to decode next, and whether something was left out after them: then the
        decoder must be drained and flushed, and the next packet is a keyframe.
    """
    group: list[Item] = []
    lead: list[Item] = []  # a keyframe and those after it that are shown before it (open GOP)
    for item in items:
        if lead and _is_shown_before(item[0], lead[0][0]):
            lead.append(item)
            continue
        if lead:
            kept, is_cut = _before(lead, group)
            yield kept, is_cut
            group, lead = (lead[:1] if is_cut else lead), []
        if item[0].is_keyframe:
            lead = [item]
        else:
            group.append(item)
            if len(group) >= MAX_HELD:
                yield group, False
                group = []
    if lead:
        kept, is_cut = _before(lead, group)
        yield kept, is_cut
        group = lead[:1] if is_cut else lead
    yield group, False  # to its end: a truncated file shows there


def _is_shown_before(packet: Packet, keyframe: Packet) -> bool:
    return (
        not packet.is_keyframe
        and packet.pts is not None
        and keyframe.pts is not None
        and packet.pts < keyframe.pts
    )


def _before(lead: list[Item], group: list[Item]) -> tuple[list[Item], bool]:
    """Return what is needed of the group before a keyframe, and whether something is left out."""
    # Leading pictures refer to the GOP before: if one is wanted, that GOP is needed whole.
    if any(wanted for _, wanted in lead[1:]):
        return group, False
    last = max((i for i, (_, wanted) in enumerate(group) if wanted), default=-1)
    return group[: last + 1], last + 1 < len(group)
