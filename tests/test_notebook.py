"""The code of docs/notebook.ipynb runs, with a smaller network, and its outputs are those of a whole execution."""

import json
import re

from conftest import ROOT

NOTEBOOK = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
SMALL = ROOT / "tests" / "small_config.py"


def test_its_code_runs(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.chdir(tmp_path)
    code = "\n".join(CODE).replace('"quickstart"', repr(str(SMALL))).replace("epochs=10", "epochs=1")
    assert str(SMALL) in code and "epochs=1)" in code
    names, before = {}, matplotlib.get_backend()
    matplotlib.use("agg")
    try:
        exec(compile(code.replace("plt.show()", "plt.close()"), "notebook", "exec"), names)
    finally:
        matplotlib.use(before)
    assert names["result"].finished and names["probabilities"].shape == (8, 10)
    assert names["path"].is_file()


def test_it_was_executed_from_top_to_bottom():
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data", "execute_result"}
    texts = "".join("".join(output.get("text", "")) for output in outputs)
    assert "\x1b" not in texts and "Test split, 359 images, after 10 epochs:" in texts
    assert not re.search(r"/(home|root|tmp|work|Users)/", json.dumps(NOTEBOOK))
