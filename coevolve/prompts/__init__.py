"""Prompts of the two models, the judge and the teacher; how they are rendered, and how a reasoning
is read.

Texts and token ids, and nothing that loads or runs a model.
"""

from coevolve.prompts.reasoning import (
    NO_REASONING,
    content_share,
    core_features,
    missing_sections,
    words_beyond,
)
from coevolve.prompts.render import Renderer
from coevolve.prompts.sets import PromptSet, prompt_set

__all__ = [
    "NO_REASONING",
    "PromptSet",
    "Renderer",
    "content_share",
    "core_features",
    "missing_sections",
    "prompt_set",
    "words_beyond",
]
