"""The replication notebook on a stand-in: it runs, counts what the datasets hold, and says so where no model is."""

import json
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import numpy as np
import pytest
import xarray as xr
from nbclient import NotebookClient

SOURCE = Path(__file__).parent.parent / "notebooks" / "02_replicate_gpt2_medium.py"
N, TOP = 12, 0.25  # a quarter of 12 heads: three a stage
STAGES = {"ioi": "logits@END; q@END; v@S2", "colored_objects": "logits@END; q@END; v@query"}
PATIENCE = 120  # seconds a cell may take
PICTURES = {"application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json"}
# Run after the notebook's own cells, in its kernel.
ASKED = """
import json
edited, drawn = repaired["the two strongest of stage 2"].copy(deep=True), {}
for value in (0.9, 0.5, 0.1):
    edited["accuracy"][:] = [0.5, value]
    edited["accuracy_random"][:] = np.linspace(0.4, 0.6, edited.sizes["seed"])
    drawn[value] = verdict_on(edited).partition(";")[0]
print(json.dumps({
    "curve": curve.reset_index().to_dict("records"),
    "circuits": [sorted(first), sorted(second)],
    "sets": {name: sorted(heads) for name, heads in sets.items()},
    "edited": edited.attrs["edited"],
    "medium": is_medium,
    "verdicts": drawn,
}))
"""


@pytest.fixture
def played(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`played(model, more)`: the notebook after all its cells ran for a model, with one more code cell at the end."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("REPLICATE_N", str(N))
    monkeypatch.setenv("REPLICATE_TOP", str(TOP))

    def run(model: Path, more: str = "") -> Any:
        monkeypatch.setenv("REPLICATE_MODEL", str(model))
        notebook = jupytext.read(SOURCE)
        if more:
            notebook.cells.append(nbformat.v4.new_code_cell(more))
        NotebookClient(notebook, timeout=PATIENCE, resources={"metadata": {"path": str(tmp_path)}}).execute()
        return notebook

    return run


@pytest.fixture
def stand_in(tmp_path: Path, words: Any) -> Path:
    """The directory of a random GPT-2 with 3 layers of 4 heads and the zoo's tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    special = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    shape = {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 128, "initializer_range": 0.3}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(words), **shape, **special)).save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def shown(notebook: Any) -> str:
    return "\n".join(output.data.get("text/markdown", "") for output in outputs(notebook) if "data" in output)


def heads_of(ds: xr.Dataset, share: float) -> set[tuple[int, int]]:
    """The strongest heads of each stage, pooled; counted head by head."""
    found = set()
    for stage in ds["effect"].transpose("receiver", "layer", "head").values:
        sizes = {(layer, head): abs(stage[layer, head]) for layer in range(3) for head in range(4)}
        ranked = sorted(sizes, key=lambda head: (-sizes[head], head))
        found |= {head for head in ranked[: max(1, round(share * 12))] if sizes[head] > 0}
    return found


def kept(model: Path, analysis: str, task: str, corruption: str, **params: Any) -> xr.Dataset:
    """What the notebook left in the store, without computing anything."""
    import workbench as wb
    from workbench.results import specify, stored

    options = {"reference": str(model), "bos": False}
    found = stored(specify(analysis, options, wb.task(task, corruption=corruption, n=N), params))
    assert found is not None, f"the notebook left no {analysis} of {task}"
    return found


def test_the_notebook_counts_what_its_datasets_hold(played, stand_in):
    notebook = played(stand_in, ASKED)
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]
    drawn = [set(output.data) & PICTURES for output in outputs(notebook) if output.output_type == "execute_result"]
    assert sum(map(bool, drawn)) >= 2  # the two head maps
    said = json.loads(notebook.cells[-1].outputs[0].text)
    assert said["medium"] is False

    corruptions = {"ioi": "s2_to_io", "colored_objects": "query"}
    traced = [
        kept(stand_in, "path_patching", task, corruptions[task], stages=stages, top=TOP)
        for task, stages in STAGES.items()
    ]
    assert [row["top share a stage"] for row in said["curve"]] == [0.01, 0.02, 0.05, 0.1, TOP]
    for row in said["curve"]:
        first, second = (heads_of(ds, row["top share a stage"]) for ds in traced)
        assert (row["heads, IOI"], row["heads, Colored Objects"]) == (len(first), len(second))
        assert row["in common"] == len(first & second)
        assert row["share"] == pytest.approx(2 * len(first & second) / (len(first) + len(second)))
        assert row["chance"] == pytest.approx(len(first) * len(second) / 12)
        within = [
            sum(head[0] == layer for head in first) * sum(head[0] == layer for head in second) for layer in (0, 1, 2)
        ]
        assert row["within layers"] == pytest.approx(sum(within) / 4)
        # The 95 % points, by drawing heads instead of counts.
        rng = np.random.default_rng(1)
        common = [np.isin(rng.permutation(12)[: len(first)], range(len(second))).sum() for _ in range(4000)]
        near = np.quantile(common, [0.93, 0.97])
        assert near[0] <= row["chance, 95 %"] <= near[1]
        assert row["in common"] <= min(len(first), len(second)) and row["within layers, 95 %"] <= 12

    first, second = (heads_of(ds, TOP) for ds in traced)
    assert [{tuple(head) for head in circuit} for circuit in said["circuits"]] == [first, second]
    sets = {"IOI": first, "Colored Objects": second, "shared": first & second}
    sets |= {"only IOI": first - second, "only Colored Objects": second - first}
    assert {name: {tuple(head) for head in heads} for name, heads in said["sets"].items()} == sets

    effect = abs(traced[0]["effect"].values[1])
    two = sorted(((layer, head) for layer in range(3) for head in range(4)), key=lambda at: -effect[at])[:2]
    assert said["edited"] == ",".join(f"L{layer}H{head}" for layer, head in sorted(two))
    words = {"0.9": "above every one of", "0.5": "among", "0.1": "below every one of"}
    assert all(words[value] in verdict for value, verdict in said["verdicts"].items())
    text = shown(notebook)
    assert f"{len(first & second)} heads in common" in text
    assert "stand-in" in text and "needs GPT-2 Medium" not in text


def test_without_the_model_it_runs_and_says_that_it_needs_it(played, tmp_path):
    notebook = played(tmp_path / "nothing")
    assert not [output for output in outputs(notebook) if output.output_type in ("error", "stream")]
    text = shown(notebook)
    assert "This notebook needs GPT-2 Medium" in text and str(tmp_path / "nothing") in text
    tables = [output.data["text/html"] for output in outputs(notebook) if "text/html" in output.get("data", {})]
    assert len(tables) == 2  # what the paper found, and nothing else
    assert "15.14, 16.15, 17.4, 18.5, 19.15" in tables[0]
    assert "25 of 32 heads (78 %)" in tables[1] and "93.7 %" in tables[1]
