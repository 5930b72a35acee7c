"""A synthetic role-play world with a closed-form p(y | x): a truth for every estimate."""
