"""Chat models with one interface: on this machine, in vLLM, or behind an endpoint."""

from coevolve.chat.base import ChatModel, Completion, Question, Reply
from coevolve.chat.endpoint import Endpoint
from coevolve.chat.local import LocalChat
from coevolve.chat.vllm import VllmChat

__all__ = ["ChatModel", "Completion", "Endpoint", "LocalChat", "Question", "Reply", "VllmChat"]
