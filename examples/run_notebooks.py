"""Run the notebooks beside this file from top to bottom, and keep what they print and draw.

In: *.ipynb.  Out: the same files, with pictures and printed text, without progress bars.

python examples/run_notebooks.py
"""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
SECONDS = 900


def executed(path: Path) -> nbformat.NotebookNode:
    """Return the notebook with the outputs of a new run; raises CellExecutionError where a cell fails."""
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    client = NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", record_timing=False)
    client.resources = {"metadata": {"path": str(path.parent)}}
    # EnvPool, once imported, sets a backend of matplotlib for all that this process starts; a kernel has its own.
    client.execute(env={name: value for name, value in os.environ.items() if name != "MPLBACKEND"})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _is_worth_keeping(output)]
    return notebook


def _is_worth_keeping(output: nbformat.NotebookNode) -> bool:
    """Whether it is a picture, a value, or what was printed."""
    return (
        output.output_type == "execute_result"
        or output.get("name") == "stdout"
        or "image/png" in output.get("data", {})
    )


if __name__ == "__main__":
    for path in sorted(HERE.glob("*.ipynb")):
        nbformat.write(executed(path), path)
