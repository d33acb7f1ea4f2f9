"""Tables for `dvc plots show`: what a log says can't end the script that they stand in."""

import pandas as pd

from stages.contracts.closure import ROOT
from stages.measures.plots import write_plot
from stages.page.files import read_csv

ATTACK = "</script><img src=x onerror=alert(1)>"


def test_texts_of_a_log_are_escaped_and_read_back_as_they_were(tmp_path):
    slices = [ATTACK, "a & b", "&lt;b&gt;", 'say "a", b', ""]
    table = pd.DataFrame({"slice": slices, "metric": "auc", "value": [0.1, None, 3.0, 4.0, 5.0], "rows": range(5)})

    write_plot(tmp_path / "by_slice.csv", table)

    text = (tmp_path / "by_slice.csv").read_text()
    assert "<" not in text
    assert text.splitlines()[1] == "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;,auc,0.1,0"
    rows = read_csv(tmp_path / "by_slice.csv")
    assert [row["slice"] for row in rows] == slices
    assert rows[1]["value"] is None


def test_no_stage_writes_texts_into_a_folder_of_plots_otherwise():
    code = {path: path.read_text() for path in (ROOT / "stages").glob("*.py")}

    assert [path.name for path, text in code.items() if ".to_csv(plots" in text] == []
    assert sorted(path.name for path, text in code.items() if "write_plot(plots" in text) == [
        "diffusion_evaluation.py",
        "evaluation.py",
        "reward_evaluation.py",
    ]
