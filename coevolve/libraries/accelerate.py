"""accelerate: its trackers by name."""

from coevolve.libraries.hooks import Hook

TRACKER_CLASSES = Hook(
    "accelerate.tracking", "LOGGER_TYPE_TO_CLASS", "figures go to the trackers that recipes name"
)
