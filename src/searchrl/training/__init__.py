"""Rollouts, advantages, losses, and the trainers that use them."""
