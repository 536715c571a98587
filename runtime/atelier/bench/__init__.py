"""`atelier bench` and `atelier warm`: clients of the public APIs that measure a server, ours or
anybody's. They know no engine and import no torch; see docs/benchmarking.md."""
