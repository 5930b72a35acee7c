"""What a person is told while a model is trained."""

import io
import json
from types import SimpleNamespace

from coevolve.progress import make_console
from coevolve.training.plans import TrainerReport
from coevolve.training.record.record import Record, Work


def test_every_step_is_in_the_record_and_every_second_is_a_calm_line(tmp_path):
    said = io.StringIO()
    record = Record(tmp_path, console=make_console(said))
    where, no_bar = {"coevolve/round": 1}, Work(lambda count: None)
    report = TrainerReport(record, where=where, work=no_bar, role="connector", first=40, every=2)
    for step, reward in ((49, 1.0), (50, 2.0), (51, 9.0)):
        logs = {"loss": 0.12345, "grad_norm": 3.0, "reward": reward, "rewards/format/mean": 0.5}
        logs["val/explained_variance"] = None  # TRL's, of what is no number in every row
        report.on_log(None, SimpleNamespace(global_step=step), None, logs)
    report.on_log(
        None, SimpleNamespace(global_step=51), None, {"train_runtime": 7.0, "train_loss": 1.0}
    )
    (line,) = said.getvalue().splitlines()
    assert line.endswith("connector, step 10: loss 0.1235, reward 1.5000")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["connector/phase_step"] for line in lines] == [9, 10, 11]
    assert [line.get("connector/reward") for line in lines] == [1.0, 2.0, 9.0]
