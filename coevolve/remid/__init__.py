"""R-EMI and R-EMID of role-playing models: the pairs scored, the evaluation, and its table."""
