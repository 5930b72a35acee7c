"""A run, from a recipe to an exported estimator: stages and phases, the gate, checkpoints, figures.

All that trains lives here and nowhere else. Scores, prompts and measures come from the layers
below, and no command line or environment is read here.
"""
