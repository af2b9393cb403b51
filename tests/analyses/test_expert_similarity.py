"""Similarity of experts: cosine, CKA and spectra against their definitions, planted twins, and other formats."""

import numpy as np
import pytest
import torch

from workbench.analyses import AnalysisError, expert_similarity
from workbench.analyses.expert_similarity import _alignment, _kernels, _outputs, shares, stored
from workbench.models.load import wrap
from workbench.tasks import make_task

SMALL = {"length": 12, "sequences": 6, "tokens": 40, "batch": 4}


def off(matrix):
    return matrix[~np.eye(len(matrix), dtype=bool)]


def test_cosine_and_spectra_are_those_of_the_weights(traced):
    model = traced("mixtral")
    ds = expert_similarity(model, make_task("ioi"), **SMALL)
    for layer, block in enumerate(model.plain.model.layers):
        experts = block.mlp.experts
        flat = torch.cat([experts.gate_up_proj.flatten(1), experts.down_proj.flatten(1)], 1).double()
        for i in range(4):
            for j in range(4):
                cosine = torch.nn.functional.cosine_similarity(flat[i], flat[j], dim=0).item()
                assert ds["cosine"].values[layer, i, j] == pytest.approx(cosine, abs=1e-5)
            down = experts.down_proj.detach().double()
            for module, matrix in (("down", down[i]), ("down, less the mean expert", down[i] - down.mean(0))):
                share = np.linalg.svd(matrix.numpy(), compute_uv=False) ** 2
                share /= share.sum()
                at = ds.sel(layer=layer, expert=i, module=module)
                assert float(at["rank"]) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)
                for size in ds["size"].values:
                    assert float(at["energy"].sel(size=size)) == pytest.approx(share[:size].sum(), rel=1e-5)
    bound = float(ds["cosine_null_high"])
    assert bound == pytest.approx(1.96 / np.sqrt(flat.shape[1]), rel=1e-4)
    assert np.mean([abs(off(each)) <= bound for each in ds["cosine"].values]) > 0.8  # untrained: independent
    np.testing.assert_allclose(
        ds["rank"].sel(module="down").mean("expert"), ds["rank_null"].sel(module="down"), rtol=0.1
    )


def test_outputs_are_those_of_each_expert_run_by_hand(traced):
    experts = traced("mixtral").plain.model.layers[0].mlp.experts
    hidden = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    for expert, out in enumerate(_outputs(experts, hidden, stored(experts, 0))):
        gate, up = (hidden @ experts.gate_up_proj[expert].T).chunk(2, -1)
        expected = (torch.nn.functional.silu(gate) * up) @ experts.down_proj[expert].T
        torch.testing.assert_close(out, expected.detach(), atol=1e-5, rtol=1e-5)


def test_alignment_is_that_of_centred_features():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 5, generator=generator), torch.randn(30, 8, generator=generator)
    turned = 3 * x @ torch.linalg.qr(torch.randn(5, 5, generator=generator))[0] + 7
    found, null = _alignment(_kernels(iter([x, y, turned])), np.random.default_rng(0))
    a, b = (x - x.mean(0)).numpy(), (y - y.mean(0)).numpy()
    expected = np.linalg.norm(b.T @ a) ** 2 / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)
    assert found[0, 1] == pytest.approx(expected, rel=1e-4)
    assert found[0, 2] == pytest.approx(1, rel=1e-4) and null.max() < 0.9
    np.testing.assert_allclose(np.diag(found), 1, rtol=1e-5)


def test_spectrum_of_a_matrix_of_known_rank():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(size, 3, generator=generator))[0] for size in (7, 12))
    values = torch.tensor([3.0, 2.0, 1.0])
    found = shares(left * values @ right.T)
    np.testing.assert_allclose(found[:3], np.array([9, 4, 1]) / 14, rtol=1e-5)
    assert len(found) == 7 and abs(found[3:]).max() < 1e-6
    assert shares(torch.zeros(4, 6)).tolist() == [1, 0, 0, 0]


@pytest.fixture(scope="module")
def twins(fresh, words):
    """A Mixtral whose experts 0 and 1 are the same, in every layer, and whose expert 2 has rank 1."""
    module = fresh("mixtral")
    with torch.no_grad():
        for block in module.model.layers:
            for weight in (block.mlp.experts.gate_up_proj, block.mlp.experts.down_proj):
                weight[1] = weight[0]
                weight[2] = torch.outer(weight[2][:, 0], weight[2][0])
    return wrap(module, words)


def test_planted_twins_are_found_and_nothing_else(twins):
    ds = expert_similarity(twins, make_task("greater_than"), **SMALL)
    for layer in (0, 1):
        at = ds.sel(layer=layer)
        for name in ("cka", "cosine"):
            values = at[name].values
            assert values[0, 1] == pytest.approx(1, abs=1e-5) and abs(values[3, :2]).max() < 0.9
        assert at["rank"].sel(expert=2, module="down") == pytest.approx(1, abs=1e-3)
        assert at["rank"].sel(expert=3, module="down") > 10
        assert (at["cka_null"] < at["cka_null_high"]) & (at["cka_random"] < 0.99)


def test_what_does_not_fit_is_refused(traced):
    with pytest.raises(AnalysisError, match=r"tokens is 999; .* use 3 to 66"):
        expert_similarity(traced("mixtral"), make_task("ioi"), **SMALL | {"tokens": 999})
    with pytest.raises(AnalysisError, match="takes 2 to 128"):
        expert_similarity(traced("mixtral"), make_task("ioi"), length=999)
    listed = torch.nn.ModuleList([torch.nn.Linear(3, 3)])
    with pytest.raises(AnalysisError, match=r"layer 5 \(ModuleList\) have no 3-D parameter 'gate_up_proj'"):
        stored(listed, 5)
