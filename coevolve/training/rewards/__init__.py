"""What a completion is rewarded for: functions by name, or a user's own. A reward trains nothing."""
