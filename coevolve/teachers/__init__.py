"""Teachers: they are shown (x, y) and write the reasoning r* of the cold start."""

from coevolve.teachers.base import Answer, Teacher
from coevolve.teachers.chat import EndpointTeacher, LocalTeacher
from coevolve.teachers.rules import RuleTeacher
from coevolve.teachers.traces import collect_traces, read_traces

__all__ = [
    "Answer",
    "EndpointTeacher",
    "LocalTeacher",
    "RuleTeacher",
    "Teacher",
    "collect_traces",
    "read_traces",
]
