"""A real, tiny chat model as teacher: untrained, its replies are malformed; trained for seconds,
they are good.
"""

import pytest

torch = pytest.importorskip("torch")

from coevolve.chat import LocalChat  # noqa: E402
from coevolve.chat.base import Question  # noqa: E402
from coevolve.errors import RecipeError, TeacherError  # noqa: E402
from coevolve.prompts import Renderer, prompt_set  # noqa: E402
from coevolve.teachers import LocalTeacher, RuleTeacher, collect_traces  # noqa: E402


def teach(model, renderer, examples, targets, steps=80):
    """Fit the model to write `targets` when asked for traces of `examples`."""
    rows = [
        (
            renderer.prompt_ids(renderer.chat(renderer.teacher(example))),
            renderer.response_ids(target),
        )
        for example, target in zip(examples, targets, strict=True)
    ]
    width = max(len(prompt) + len(reply) for prompt, reply in rows)
    ids = torch.full((len(rows), width), renderer.tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for row, (prompt, reply) in enumerate(rows):
        ids[row, : len(prompt) + len(reply)] = torch.tensor(prompt + reply)
        labels[row, len(prompt) : len(prompt) + len(reply)] = torch.tensor(reply)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    model.train()
    for _ in range(steps):
        loss = model(input_ids=ids, attention_mask=torch.arange(width) < width, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return loss.item()


@pytest.fixture(scope="module")
def taught(build_model, renderer, dialogues):
    """A model that answers two examples with traces and the third with a section too few; and the
    two traces.
    """
    model = build_model()
    targets = {
        example.sample_id: RuleTeacher(renderer.prompts).trace(example) for example in dialogues[:2]
    }
    assert (
        teach(model, renderer, dialogues, [*targets.values(), "[Connections]\nsomething new"])
        < 0.05
    )
    return model, targets


def test_replies_of_a_trained_model_become_traces(taught, renderer, dialogues, tmp_path):
    model, targets = taught
    model.save_pretrained(tmp_path / "teacher")
    renderer.tokenizer.save_pretrained(tmp_path / "teacher")
    teacher = LocalTeacher.load(
        str(tmp_path / "teacher"),
        renderer.prompts,
        dtype="float32",
        device="cpu",
        max_new_tokens=80,
        batch_size=2,
    )
    assert collect_traces(dialogues[:2], teacher, tmp_path / "traces.jsonl") == targets


def test_a_malformed_reply_is_an_error_that_names_the_example(
    tiny_model, renderer, dialogues, tmp_path
):
    teacher = LocalTeacher(LocalChat(tiny_model, renderer, max_new_tokens=8, attempts=2))
    with pytest.raises(
        TeacherError,
        match=r"'(bread|tuba|lisbon)'.*after 2 attempts.*cut off.*\[Connections\].*drop",
    ):
        collect_traces(dialogues, teacher, tmp_path / "traces.jsonl")


def test_malformed_replies_can_be_dropped_and_counted(taught, renderer, dialogues, tmp_path):
    model, targets = taught
    teacher = LocalTeacher(
        LocalChat(model, renderer, max_new_tokens=80, attempts=2, retry_temperature=0.1)
    )
    notes = []
    traces = collect_traces(
        dialogues,
        teacher,
        tmp_path / "t.jsonl",
        on_failure="drop",
        progress=lambda *told: notes.append(told),
    )
    assert traces == targets
    assert notes[-1] == (3, 3, "1 dropped")


def test_nothing_but_drops_is_an_error(tiny_model, renderer, dialogues, tmp_path):
    teacher = LocalTeacher(LocalChat(tiny_model, renderer, max_new_tokens=4))
    with pytest.raises(TeacherError, match="no usable trace for any of 3 examples"):
        collect_traces(dialogues, teacher, tmp_path / "traces.jsonl", on_failure="drop")


def test_asking_again_samples_and_does_not_depend_on_the_batch(tiny_model, renderer, dialogues):
    def replies(batch_size: int, seed: int) -> dict[str, str]:
        how = {"max_new_tokens": 6, "attempts": 2, "retry_temperature": 2.0}
        chat = LocalChat(tiny_model, renderer, batch_size=batch_size, seed=seed, **how)
        teacher = LocalTeacher(chat)
        return {answer.sample_id: answer.problem for answer in teacher.answers(dialogues)}

    assert replies(1, seed=0) == replies(3, seed=0)
    assert replies(3, seed=0) != replies(3, seed=1)


def test_a_prompt_that_does_not_fit_is_a_problem_of_its_example(
    tiny_model, renderer, dialogues, make
):
    long = make("Yes.", "word " * 600, sample_id="long")
    answers = list(
        LocalTeacher(LocalChat(tiny_model, renderer, max_new_tokens=4)).answers([*dialogues, long])
    )
    assert len(answers) == 4
    assert "'long'" in answers[0].problem
    assert "tokens, and beside 4 new ones the model has room for 508" in answers[0].problem


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(TeacherError, match=f"'{tmp_path}' cannot be loaded"):
        LocalTeacher.load(str(tmp_path), prompt_set("brief"))


def test_unusable_options_are_refused(tiny_model, renderer, tokenizer):
    with pytest.raises(RecipeError, match="attempts: found 0"):
        LocalChat(tiny_model, renderer, max_new_tokens=4, attempts=0)
    with pytest.raises(RecipeError, match="'world' has no teacher_user"):
        LocalTeacher(
            LocalChat(tiny_model, Renderer(prompt_set("world"), tokenizer), max_new_tokens=4)
        )
    with pytest.raises(RecipeError, match="dtype: found 'int4'"):
        LocalTeacher.load("anywhere", prompt_set("brief"), dtype="int4")


def test_settings_name_the_model(tiny_model, renderer):
    settings = LocalTeacher(LocalChat(tiny_model, renderer, max_new_tokens=4, seed=3)).settings
    assert settings["seed"] == 3 and settings["dtype"] == "float32"


def test_shares_are_whole_batches_of_what_one_process_asks(taught, renderer, make):
    """Which prompts are padded together can decide a bit."""
    examples = [
        make("Yes.", "Do you agree? " * (1 + 7 * i % 12), sample_id=f"x-{i}") for i in range(11)
    ]
    teacher = LocalTeacher(LocalChat(taught[0], renderer, batch_size=3, max_new_tokens=4))

    def batches(of):
        questions = [Question(x.sample_id, renderer.teacher(x)) for x in of]
        return [
            [question.id for question, _ in batch] for batch in teacher.chat.batches(questions)[0]
        ]

    whole = batches(examples)
    assert list(map(len, whole)) == [3, 3, 3, 2]
    for count in (2, 3, 5):
        shares = [teacher.share(examples, rank, count) for rank in range(count)]
        assert sorted(x.sample_id for share in shares for x in share) == sorted(
            x.sample_id for x in examples
        )
        assert sorted(batch for share in shares for batch in batches(share)) == sorted(whole)
