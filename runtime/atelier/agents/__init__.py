"""Tools with which assistants draw: a client of the public picture APIs that speaks MCP. It knows
no engine and no torch."""
