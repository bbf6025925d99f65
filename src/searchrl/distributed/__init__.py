"""Hand-over to other trainers: verl on Ray for clusters, TRL by its rollout function."""
