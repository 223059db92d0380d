"""The notebook of examples/, run in a kernel as Jupyter does."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.builders.outputs import make_output_folder
from tests.support.paths import ROOT

NOTEBOOK = ROOT / "examples" / "masks.ipynb"


@pytest.mark.slow
# The client's loop and sockets end with the process.
@pytest.mark.filterwarnings("default::ResourceWarning", "default::pytest.PytestUnraisableExceptionWarning")
def test_the_notebook_runs_and_shows_tables_and_pictures(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "build" / "demo").mkdir(parents=True)
    make_output_folder(folder / "build" / "demo", output="masks")
    # The kernel imports this checkout, and leaves the user's settings alone.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert [cell.source for cell in notebook.cells if cell.cell_type == "code" and cell.outputs] == []
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    shown = [output.data for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    pages = [data["text/html"] for data in shown if "text/html" in data]
    assert "<td>6 of 7</td>" in pages[0]
    assert any("data:image/png;base64" in page for page in pages)
    assert any("image/png" in data for data in shown)
    assert shown[-1]["text/plain"].startswith("[((3, 342, 512), 1), ((3, ")
