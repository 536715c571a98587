"""Bytes as people read them."""

GIB = 2**30
MIB = 2**20


def gib(size: float) -> str:
    """Bytes as GiB, or as MiB below a tenth of one."""
    return f"{size / GIB:.1f} GiB" if abs(size) >= GIB / 10 else f"{size / MIB:.0f} MiB"
