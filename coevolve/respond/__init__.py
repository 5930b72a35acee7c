"""Responses of the role-playing models that are to be judged."""

from coevolve.respond.collect import Collection, collect_responses

__all__ = ["Collection", "collect_responses"]
