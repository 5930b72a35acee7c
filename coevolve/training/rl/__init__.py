"""Reinforcement learning of one phase: GRPO, and PPO on top of it."""
