"""The record of a run over all its sittings, and the trackers that show it."""
