"""Teachers: they are shown (x, y) and write the reasoning r* of the cold start.

What is trained on their traces, and whether they help, is the business of training.
"""

from coevolve.teachers.base import TEACHERS, Answer, DivisibleTeacher, Teacher, make_teacher
from coevolve.teachers.chat import EndpointTeacher, LocalTeacher
from coevolve.teachers.rules import RuleTeacher
from coevolve.teachers.traces import collect_traces, read_traces, unanswered

__all__ = [
    "TEACHERS",
    "Answer",
    "DivisibleTeacher",
    "EndpointTeacher",
    "LocalTeacher",
    "RuleTeacher",
    "Teacher",
    "collect_traces",
    "make_teacher",
    "read_traces",
    "unanswered",
]
