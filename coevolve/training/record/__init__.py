"""The record of a run over all its sittings, and the trackers that show it.

Figures are written as they are given; what they mean and when they go wrong is in `diagnostics`.
"""
