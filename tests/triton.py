"""Triton's gRPC client beside KServe's in one process.

Both packages bring the Open Inference Protocol's messages under the same names, and protobuf's
default pool takes a name once. So Triton's are built in a pool of their own.
"""

from __future__ import annotations

from unittest.mock import patch

from google.protobuf import descriptor_pool

_pool = descriptor_pool.DescriptorPool()
with patch.object(descriptor_pool, "Default", lambda: _pool):
    import tritonclient.grpc as grpc

__all__ = ["grpc"]
