"""R-EMI and R-EMID of role-playing models: `score` is the one door to scoring; what is made of the
scores are typed results, and tables are made of these.
"""
