"""Information theory as pure functions on arrays: NumPy only, natural logarithms (nats)."""
