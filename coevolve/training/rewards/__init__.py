"""What a completion is rewarded for: functions by name, or a user's. A reward trains nothing."""
