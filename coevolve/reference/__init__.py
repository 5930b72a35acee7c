"""The paper's public code: its layout, read and written, and its protocol, faults included."""
