"""What the processor's parts are called; needs no verl."""

ROLLOUT = "processor"
