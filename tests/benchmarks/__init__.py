"""Speed and memory as ratios, peer and own measured in one run. Each file is a command that prints
JSON.

    python -m tests.benchmarks.matrix --n 12

None of them is a test: what a machine does in a second is no property of the code. Every size can
be set, so that each also runs in seconds; `--base tiny` takes a random model of a few thousand
parameters.
"""
