"""Indexes that answer queries over a corpus, behind one Retriever protocol."""
