"""What can be known before anything is loaded, asked or trained: a list of named checks with one
entry point.

Here live the checks and what they build on the way (data, tokenizers, prompts' lengths, given
traces and responses), which the work itself then goes on with. No check loads weights, asks a model
or writes a file.
"""
