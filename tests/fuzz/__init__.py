"""Fuzzing: valid inputs of every kind are damaged, and every command must answer well or say no in
words.

    python -m tests.fuzz --n 2000 --seed 0          all areas; a table, and exit status 1 where
    anything failed python -m tests.fuzz --only recipes --index 17  one input again, kept on disk
    and told in full python -m tests.fuzz.recipes --n 300            random valid recipes, each
    trained for a few steps

`core` says what an input is and what counts as a failure, `mutate` damages, `valid` makes what is
damaged, `runner` keeps the harness alive through hangs and crashes; each file in `areas` is one
kind of input, with its oracle.
"""
