"""A JPEG's first bytes ─► where its scan begins, if a decoder can make sense of what stands before it.

    scan_offset(data, height=256, width=340)       # ─► 623

DALI's CPU decoder crashes the process on a header that it cannot parse while other frames of the batch are in work
(2.4.0: 12 of 12 runs; a broken scan behind a good header is an error, as it should be). So none reaches it.
"""

_SOI, _EOI, _SOS, _TEM, _FILL = 0xD8, 0xD9, 0xDA, 0x01, 0xFF
_RESTARTS = range(0xD0, 0xD8)
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended, progressive


class HeaderError(ValueError):
    """A header that decoders cannot be given; the message says what is wrong with it."""


def scan_offset(data: memoryview | bytes, *, height: int, width: int) -> int:
    """Walk the markers up to the scan (ITU-T T.81, annex B) and return the offset of its data.

    Args:
        data: the whole file.
        height: that the frame must have.
        width: that the frame must have.

    Raises:
        HeaderError: no scan is reached, or a frame of another size.
    """
    if len(data) < 4 or data[0] != 0xFF or data[1] != _SOI:
        raise HeaderError("it is no JPEG")
    at, has_frame = 2, False
    while at + 4 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF:
            raise HeaderError(f"no marker at byte {at} of its header")
        if marker == _FILL:
            at += 1
            continue
        if marker == _TEM or marker in _RESTARTS:
            at += 2
            continue
        length = data[at + 2] << 8 | data[at + 3]
        if marker in (0, _SOI, _EOI) or length < 2 or at + 2 + length > len(data):
            raise HeaderError(f"marker {marker:02x} at byte {at} of its header")
        if marker in _FRAMES and length >= 8:
            has_frame = True
            size = (data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8])
            if size != (height, width):
                raise HeaderError(f"it is {size[0]} x {size[1]} pixels, the index says {height} x {width}")
        at += 2 + length
        if marker == _SOS:
            if not has_frame:
                raise HeaderError("no frame before its scan")
            return at
    raise HeaderError("no scan in it")
