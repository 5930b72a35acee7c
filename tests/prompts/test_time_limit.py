"""A chat template that does not end is one sentence; everything else about signals and timers stays
as it was.
"""

import signal
import threading
import time

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from coevolve.errors import ArtifactError
from coevolve.prompts import Renderer, prompt_set
from coevolve.prompts.time_limit import time_limit

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LOOPS = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}"
ENDS = "{% endfor %}{% endfor %}{% endfor %}"
ENDLESS = {
    "nothing": LOOPS + ENDS,
    "faults that are swallowed": LOOPS + "{{ (a ~ 'x') | int }}" + ENDS,
    "a number that grows": (
        "{% set n = namespace(x=3) %}{% for a in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}"
    ),
}


def spin(seconds):
    """Use the processor for so long, as the clock has it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


@pytest.fixture
def render(monkeypatch):
    """Renders a conversation by a chat template, for which there is little time."""
    monkeypatch.setattr("coevolve.prompts.time_limit.SECONDS", 0.2)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<|end|>": 1}, "<unk>"))

    def run(template):
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, eos_token="<|end|>", chat_template=template
        )
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|assistant|>"]})
        return Renderer(prompt_set("brief"), tokenizer).judge("Thought.", "Ahoy!")

    return run


@pytest.mark.parametrize(
    "when", ["true", "messages[-1].role == 'assistant'", "messages[-1].role == 'user'"]
)
@pytest.mark.parametrize("body", ENDLESS.values(), ids=ENDLESS)
def test_a_template_without_end_is_one_sentence(render, body, when):
    began = time.monotonic()
    with pytest.raises(
        ArtifactError, match=r"chat template of .* does not end within 0.2 seconds of computing"
    ):
        render(f"{{% if {when} %}}{body}{{% endif %}}{CHATML}")
    assert time.monotonic() - began < 10
    assert "Ahoy!" in render(CHATML)


def test_timers_and_handlers_of_others_go_on(monkeypatch):
    rung = []
    old = signal.signal(signal.SIGVTALRM, lambda *_: rung.append(1))
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.2)
        with time_limit(30.0):
            pass
        began = time.process_time()  # by whose clock the timer goes
        while not rung and time.process_time() < began + 10:
            spin(0.1)
        assert rung == [1]
        with pytest.raises(TimeoutError), time_limit(0.1):
            spin(20.0)
        spin(0.3)
        assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0) and rung == [1]
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, old)


def test_other_threads_render_without_a_limit():
    done = []

    def work():
        with time_limit(0.01):
            spin(0.1)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
