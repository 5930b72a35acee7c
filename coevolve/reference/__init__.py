"""The paper's public code: its release's layout, read and written, and its protocol. All that is
there only to agree with that code lives here, faults included; nothing else depends on it.
"""
