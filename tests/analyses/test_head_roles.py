"""Head roles against patterns of plain transformers, weights multiplied by hand, and path patching."""

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import AutoModelForCausalLM

from workbench import store
from workbench.analyses import AnalysisError, head_roles, path_patching
from workbench.analyses.head_roles import LENGTH, ROLES, SEQUENCES
from workbench.models.heads import head_name
from workbench.tasks import make_task


def random_tokens(model, seed):
    """The repeated random tokens, made again: BOS, then a stretch of words twice."""
    special = set(model.tokenizer.all_special_ids)
    words = np.array([token for token in range(len(model.tokenizer)) if token not in special])
    once = np.random.default_rng(seed).choice(words, (SEQUENCES, LENGTH))
    return np.concatenate([np.full((SEQUENCES, 1), model.tokenizer.bos_token_id), once, once], axis=1)


def test_attention_roles_are_means_of_plain_transformers_patterns(traced, saved):
    model = traced("gpt2")
    ds = head_roles(model, make_task("ioi", n=8, seed=5))
    module = AutoModelForCausalLM.from_pretrained(saved("gpt2"), attn_implementation="eager").eval()
    with torch.inference_mode():
        patterns = module(torch.tensor(random_tokens(model, 5)), output_attentions=True).attentions
    pattern = np.stack([p.mean(0).numpy() for p in patterns])  # [layer, head, query, key]
    places = range(1 + LENGTH, 1 + 2 * LENGTH)
    wanted = {
        "previous token": [(q, q - 1) for q in range(1, 1 + 2 * LENGTH)],
        "duplicate token": [(q, q - LENGTH) for q in places],
        "induction": [(q, q - LENGTH + 1) for q in places],
    }
    for name, cells in wanted.items():
        expected = np.mean([pattern[:, :, q, k] for q, k in cells], axis=0)
        np.testing.assert_allclose(ds["score"].sel(component=name).values, expected, atol=1e-6)
        assert float(ds["score_null"].sel(component=name)) == pytest.approx(np.mean([1 / (q + 1) for q, _ in cells]))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_a_head_writes_alone_is_its_part_of_the_output_matrix(family, traced, saved):
    model = traced(family)
    z = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    module = AutoModelForCausalLM.from_pretrained(saved(family)).eval()
    if family == "gpt2":
        weight, norm = module.transformer.h[1].attn.c_proj.weight, module.transformer.ln_f
    else:
        weight, norm = module.model.layers[1].self_attn.o_proj.weight.T, module.model.norm
    with torch.inference_mode():
        expected = torch.stack(
            [module.lm_head(norm(z[:, head] @ weight[8 * head : 8 * head + 8])) for head in range(4)], 1
        )
    torch.testing.assert_close(model.written_logits(1, z), expected, atol=1e-5, rtol=1e-5)


def test_movers_attend_to_the_answer_and_copy_it(zoo_model):
    """The score is the attention of the prompts whose answer the head's OV circuit puts among the first five."""
    task = make_task("ioi", n=16, corruption="value_swap")
    ds, prompts = head_roles(zoo_model, task), task.encode(zoo_model.tokenizer, bos=zoo_model.bos)
    best = ds["score"].sel(component="mover").argmax(["layer", "head"])
    layer, head = int(best["layer"]), int(best["head"])
    total = 0.0
    for tokens, answer in zip(prompts.clean, prompts.answers, strict=True):
        names = [f"blocks.{layer}.attn.hook_{part}" for part in ("pattern", "v")]
        _, kept = zoo_model.capture(tokens[None], names)
        place = np.flatnonzero(tokens == answer[0])[-1]
        logits = zoo_model.written_logits(layer, kept[names[1]][:, place])[0, head]
        copies = int((logits > logits[answer[0]]).sum()) < 5
        total += copies * float(kept[names[0]][0, head, -1, place])
    found = float(ds["score"].sel(component="mover", layer=layer, head=head))
    assert found == pytest.approx(total / len(prompts), abs=1e-6) and found > 0.4
    assert int(ds["role"].sel(layer=layer, head=head)) == ds["component"].values.tolist().index("mover")


def test_inhibition_is_path_patching_into_the_movers_queries(zoo_model):
    task = make_task("ioi", n=16)
    ds = head_roles(zoo_model, task)
    movers = [
        head_name(int(layer), int(head))
        for role in ("mover", "negative mover")
        for layer, head in np.argwhere(ds["score"].sel(component=role).values >= ds.attrs["threshold"])
    ]
    paths = path_patching(zoo_model, task, stages="+".join(f"{name}.q" for name in movers) + "@END", draws=10)
    expected = paths["effect"].values[0]
    np.testing.assert_allclose(ds["score"].sel(component="inhibition").values, expected, atol=1e-6)


def test_roles_that_a_task_cannot_show_are_left_out(traced):
    verbs, objects = (head_roles(traced("gpt2"), make_task(name, n=8)) for name in ("subject_verb", "colored_objects"))
    assert verbs["component"].values.tolist() == ["previous token", "duplicate token", "induction"]
    assert "content gatherer" in objects["component"].values and set(objects["component"].values) <= set(ROLES)
    assert objects["meaning"].values.tolist() == [ROLES[name] for name in objects["component"].values]


def test_the_content_gatherer_looks_at_the_word_asked_for(traced):
    model, task = traced("gpt2"), make_task("colored_objects", n=6)
    ds, prompts = head_roles(model, task), task.encode(model.tokenizer, bos=model.bos)
    rows = []
    for tokens, marks in zip(prompts.clean, prompts.positions, strict=True):
        names = [f"blocks.{layer}.attn.hook_pattern" for layer in (0, 1)]
        _, kept = model.capture(tokens[None], names)
        rows.append(np.stack([kept[name][0, :, -1, marks["query"]].numpy() for name in names]))
    np.testing.assert_allclose(ds["score"].sel(component="content gatherer").values, np.mean(rows, 0), atol=1e-6)


def test_a_label_is_the_best_role_from_the_threshold_on(traced, tmp_path):
    ds = head_roles(traced("gpt2"), make_task("ioi", n=8), threshold=0.1)
    score, role = ds["score"].values, ds["role"].values
    for layer, head in np.ndindex(role.shape):
        best = score[:, layer, head].argmax()
        assert role[layer, head] == (best if score[best, layer, head] >= 0.1 else -1)
    xr.testing.assert_equal(store.load(store.save(ds, tmp_path / "roles.nc")), ds)
    with pytest.raises(AnalysisError, match="threshold is 0"):
        head_roles(traced("gpt2"), make_task("ioi", n=8), threshold=0.0)
