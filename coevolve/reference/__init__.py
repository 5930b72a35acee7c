"""The paper's public code: its release's layout, read and written, and its protocol."""
