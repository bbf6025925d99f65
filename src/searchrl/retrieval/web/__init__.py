"""The web as a corpus: search services behind the ``Retriever`` protocol, and pages they name."""
