"""ClofNet, and EGNO with its layer, from recipe to report."""

import json

import pytest

from equidyn.report import write_report
from equidyn.train import evaluate


@pytest.mark.parametrize(
    "sections",
    [
        {"system": "clofnet", "model": {"options": {"skip": 2.0}}},
        {"model": {"backbone": "clofnet", "options": {"reflections": True}}},
    ],
)
def test_trains_evaluates_and_reports(sections, content, tiny_train, tmp_path):
    if "system" in sections:  # the fixture merges sections
        for key in ("times", "time_dim"):
            content["model"].pop(key)
    folder = tiny_train(sections=sections)
    assert evaluate(folder)["f_mse"] > 0
    symmetry = json.loads((folder / "evaluation.json").read_text())["symmetry"]
    assert ("reflection" in symmetry) == ("system" not in sections)  # what is not promised is not reported
    assert max(symmetry.values()) < 1e-4
    assert write_report([folder], tmp_path / "report.html").is_file()
