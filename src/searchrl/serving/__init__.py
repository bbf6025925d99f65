"""What this package offers to other programs over HTTP and MCP, and the client of it."""
