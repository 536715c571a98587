# The MCP server, seen by a client of somebody else.
.PHONY: mcp-inspector
mcp-inspector: install ## the MCP Inspector's command line (npx, Node 22.19) calls every tool over both transports
	PYTHONPATH=runtime:. $(BIN)/python make/inspector.py
