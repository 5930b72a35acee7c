"""What a person is told while a model is trained."""

import io
from types import SimpleNamespace

from coevolve.progress import make_console
from coevolve.training.plans import TrainerReport
from coevolve.training.record.record import Record, Work


def test_a_logging_step_is_one_calm_line(tmp_path):
    said = io.StringIO()
    record = Record(tmp_path, console=make_console(said))
    report = TrainerReport(record, Work(lambda count: None), {"coevolve/round": 1}, "connector", 40)
    logs = {"loss": 0.12345, "grad_norm": 3.0, "reward": 1.5, "rewards/format/mean": 0.5}
    report.on_log(None, SimpleNamespace(global_step=50), None, logs)
    report.on_log(None, SimpleNamespace(global_step=52), None, {"num_tokens": 7, "train_loss": 1.0})
    (line,) = said.getvalue().splitlines()
    assert line.endswith("connector, step 10: loss 0.1235, reward 1.5000")
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
