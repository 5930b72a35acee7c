"""Reinforcement learning of one phase: GRPO, and PPO and RLOO on top of it.

The numerics are pure functions on tensors (`policy_gradient`); rewards come from `rewards`.
"""
