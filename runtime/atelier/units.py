"""Bytes as people read them."""

GIB = 2**30
MIB = 2**20
KIB = 2**10


def gib(size: float) -> str:
    """Bytes as GiB; as MiB below a tenth of one, as KiB below a MiB."""
    if abs(size) >= GIB / 10:
        return f"{size / GIB:.1f} GiB"
    return f"{size / MIB:.0f} MiB" if abs(size) >= MIB else f"{size / KIB:.1f} KiB"
