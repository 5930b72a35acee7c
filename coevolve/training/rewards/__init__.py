"""What a completion is rewarded for: functions by name, or of the user's own, and the models that
they ask.
"""
