"""What a training step costs, and what each idea of the engine saves."""
