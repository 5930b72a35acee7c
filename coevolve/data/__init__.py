"""Dialogue examples: what they are, where they are read from, and the responses of models on them.

Every row is checked here, so that nothing above has to. No model, no tokenizer, no prompt.
"""
