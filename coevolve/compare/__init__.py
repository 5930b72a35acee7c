"""Role-playing models compared: on every subset, by every measure, and by the way in which they
were trained.
"""
