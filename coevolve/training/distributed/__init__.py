"""Many processes as one: who does what, what stops all of them, and weights that are spread over
them.

What is trained is not known here.
"""
