"""Training by several processes that torchrun starts."""
