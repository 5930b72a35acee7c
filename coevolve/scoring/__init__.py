"""Exact log-probabilities and seeded generation. Needs torch, transformers and peft, and nothing of
training.
"""
