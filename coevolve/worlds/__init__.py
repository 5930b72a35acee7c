"""A synthetic role-play world with a closed-form p(y | x): every estimate can be put beside the
truth.
"""
