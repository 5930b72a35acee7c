"""What a completion is rewarded for: functions by name, or a user's own. A reward sees a batch and
gives a value for each completion; it trains nothing.
"""
