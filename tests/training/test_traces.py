"""The teacher of a run: asked once about each example, left when the run is asked to stop, and not
needed any more when its traces are on disk.
"""

import json
import threading
import time

import pytest

from coevolve.errors import ArtifactError
from coevolve.training.distributed.processes import Interrupted
from coevolve.training.distributed.stopping import Stop
from coevolve.training.run import train

TEACHER = '''
import time
from pathlib import Path
from coevolve.teachers import Answer


class Teacher:
    """Knows the answers, refuses every seventh, and writes down what it was asked."""

    settings = {"kind": "ours"}

    def __init__(self, prompts, train, poll, **more):
        if Path(__file__).with_name("gone").exists():
            raise RuntimeError("the teacher is gone")
        self.prompts, self.poll = prompts, poll

    def answers(self, examples):
        for example in examples:
            with open(__file__ + ".asked", "a") as file:
                file.write(example.sample_id + "\\n")
            if Path(__file__).with_name("slow").exists():
                while True:
                    self.poll()
                    time.sleep(0.05)
            number = int(example.sample_id.rpartition("-")[2])
            if number % 7 == 3:
                yield Answer(example.sample_id, None, "refused")
            else:
                trace = f"[Connections] none [Features] {example.golden_response}"
                yield Answer(example.sample_id, trace)
'''


@pytest.fixture
def teacher(tmp_path):
    """A teacher in a user's file, that can be made slow or gone; and what it was asked so far."""
    path = tmp_path / "teacher.py"
    path.write_text(TEACHER)

    class OnDisk:
        name = f"custom:{path}:Teacher"

        def be(self, what):
            (tmp_path / what).touch()

        @property
        def asked(self):
            notes = path.with_name("teacher.py.asked")
            return notes.read_text().split() if notes.exists() else []

    return OnDisk()


def test_traces_on_disk_are_all_that_a_resumed_run_needs(recipe_of, teacher, tmp_path, stop_after):
    """With examples dropped, and the oracle's traces too; whatever has become of the teacher."""
    recipe = recipe_of(
        traces={"teacher": teacher.name, "on_failure": "drop"}, baselines={"oracle": True}
    )
    whole = train(recipe, tmp_path / "whole")
    asked = len(teacher.asked)
    assert len(set(teacher.asked)) == asked > 40
    kept = json.loads((tmp_path / "whole" / "traces.kept.json").read_text())["sample_IDs"]
    assert 20 < len(kept) < 32 and not any(int(x.rpartition("-")[2]) % 7 == 3 for x in kept)

    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "run", stop=stop_after(120))
    for name in ("traces.jsonl", "traces.kept.json"):
        assert (tmp_path / "run" / name).exists()
    (tmp_path / "run" / "oracle").mkdir(exist_ok=True)
    for path in (tmp_path / "whole" / "oracle").iterdir():
        (tmp_path / "run" / "oracle" / path.name).write_bytes(path.read_bytes())
    before = len(teacher.asked)
    teacher.be("gone")
    resumed = train(recipe, tmp_path / "run")
    assert len(teacher.asked) == before
    for name in ("perplexity", "remid"):
        assert resumed[name] == whole[name]


def test_a_run_that_is_asked_to_stop_leaves_its_teacher(recipe_of, teacher, tmp_path):
    teacher.be("slow")
    recipe, stop = recipe_of(traces={"teacher": teacher.name}), Stop()

    def ask():
        while not teacher.asked:
            time.sleep(0.05)
        stop.reason = "SIGTERM"

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "run", stop=stop)
    assert len(teacher.asked) == 1
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("interrupted", "SIGTERM")
    (tmp_path / "slow").unlink()
    recipe = recipe_of(traces={"teacher": teacher.name, "on_failure": "drop"})
    assert train(recipe, tmp_path / "run")["perplexity"]


def test_a_damaged_note_of_what_was_kept_is_one_sentence(recipe_of, teacher, tmp_path, stop_after):
    recipe = recipe_of(traces={"teacher": teacher.name, "on_failure": "drop"})
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "run", stop=stop_after(60))
    (tmp_path / "run" / "traces.kept.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"traces\.kept\.json.*Delete it"):
        train(recipe, tmp_path / "run")
