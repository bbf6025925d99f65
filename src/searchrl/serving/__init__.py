"""The HTTP retriever, its client, and the search tool for other programs' agents."""
