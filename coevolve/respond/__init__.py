"""Responses of the role-playing models that are to be judged: collected one by one, each on disk
when it arrives.

How a model is reached is in `chat`, what it is shown in `prompts`.
"""

from coevolve.respond.collect import Collection, collect_responses

__all__ = ["Collection", "collect_responses"]
