"""Tests against vLLM itself; they run in an environment of their own: ``make test-vllm``."""
