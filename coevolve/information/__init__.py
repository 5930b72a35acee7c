"""Information theory as pure functions on arrays: NumPy only, natural logarithms (nats).

No file, no model, no text: log-probabilities come in, estimates and their influences go out.
"""
