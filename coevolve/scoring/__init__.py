"""Exact log-probabilities and seeded generation, and the estimator that is made of them.

Needs torch, transformers and peft, and nothing of training; it knows prompts, and no measure.
"""
