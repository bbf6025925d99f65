"""verl on processors alone, so that its training loop can be tested where there is no GPU.

Loaded in every process of verl, the platform first, by ``VERL_USE_EXTERNAL_MODULES``: a platform,
FSDP2 engines for it, rollout servers that decode with the in-process engine, so that a draw under
verl is the draw in process, and ``patches`` for what verl takes for granted of a GPU.
"""
