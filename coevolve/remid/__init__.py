"""R-EMI and R-EMID of role-playing models: `score` is the one door to scoring; what is made of the
scores (`evaluate`, `bound`, `blame`, `judge`) are typed results (`results`, `bound_results`), and
tables are made of these. No command line, and nothing of training.
"""
