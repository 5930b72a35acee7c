"""Chat models to ask: on this machine, with vLLM, or behind an OpenAI-compatible endpoint; all with
one interface.
"""

from coevolve.chat.base import ChatModel, Completion, Question, Reply
from coevolve.chat.endpoint import Endpoint
from coevolve.chat.local import LocalChat
from coevolve.chat.vllm import VllmChat

__all__ = ["ChatModel", "Completion", "Endpoint", "LocalChat", "Question", "Reply", "VllmChat"]
