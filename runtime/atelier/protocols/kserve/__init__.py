"""KServe's v1 and v2 protocols, REST and gRPC."""
