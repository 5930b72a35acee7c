"""Dialogue examples: what they are, where they are read from, and the responses of models on them."""
