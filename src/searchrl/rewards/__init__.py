"""From a finished episode to a number: text metrics, the judge, Gain Beyond RAG."""
