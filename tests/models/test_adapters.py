"""Adapters: what the bridge cannot carry is refused, what is merged is exact, and the user's module stays as it was."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer

from workbench.analyses import AnalysisError, head_patching
from workbench.models.load import load, wrap
from workbench.tasks import make_task

TOKENS = np.random.default_rng(1).integers(3, 400, (2, 12))


def adapted(module, target, **options):
    """The module with a LoRA adapter that does something, unless `init_lora_weights` is left on."""
    torch.manual_seed(1)
    settings = {"init_lora_weights": False, "r": 4, "lora_alpha": 8, "fan_in_fan_out": target == "c_attn"} | options
    return get_peft_model(module, LoraConfig(target_modules=[target], **settings)).eval()


def logits_of(module):
    with torch.inference_mode():
        return module(input_ids=torch.from_numpy(TOKENS)).logits


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.fixture
def fused(fresh):
    """GPT-2 with an adapter on the one matrix that makes queries, keys and values together."""
    return adapted(fresh("gpt2"), "c_attn")


def test_a_live_adapter_on_a_fused_matrix_is_red_and_refused(fused, words):
    model = wrap(fused, words)
    (problem,) = model.card.problems()
    assert problem.name == "same numbers" and "merge=True" in problem.fix
    with pytest.raises(AnalysisError, match=r"trust card.*red.*merge=True.*override=True"):
        head_patching(model, make_task("subject_verb", n=8))


def test_override_traces_a_red_model_and_says_so_in_the_result(fused, words):
    ds = head_patching(wrap(fused, words, override=True), make_task("subject_verb", n=8), draws=10)
    assert '"colour": "red"' in ds.attrs["trust"]


def test_merging_is_exact_and_leaves_the_module_alone(fused, words):
    expected, before = logits_of(fused), state(fused)
    model = wrap(fused, words, merge=True)
    assert model.card.colour == "green", model.card
    torch.testing.assert_close(model.logits(TOKENS), expected, atol=1e-5, rtol=1e-5)
    after = fused.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_the_module_still_trains_after_it_was_traced(fused, words):
    fused.train()
    wrap(fused, words, merge=True)
    assert fused.training
    trained = [p for p in fused.parameters() if p.requires_grad]
    assert trained
    ids, before = torch.from_numpy(TOKENS), [p.detach().clone() for p in trained]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    fused(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert all(not torch.equal(new, old) for new, old in zip(trained, before, strict=True))


def test_an_adapter_folder_loads_by_its_path(saved, fresh, tmp_path, words):
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(saved("gpt2"))
    adapted(base, "c_attn").save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    expected = logits_of(
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(saved("gpt2")), tmp_path).eval()
    )
    assert load(tmp_path, device="cpu").card.colour == "red"
    merged = load(tmp_path, device="cpu", merge=True)
    assert merged.card.colour == "green", merged.card
    torch.testing.assert_close(merged.logits(TOKENS), expected, atol=1e-5, rtol=1e-5)


def test_an_adapter_on_a_matrix_of_its_own_is_carried_live(fresh, words):
    module = adapted(fresh("llama"), "q_proj")
    model = wrap(module, words)
    assert model.card.colour == "green", model.card
    torch.testing.assert_close(model.logits(TOKENS), logits_of(module), atol=1e-5, rtol=1e-5)


def test_an_adapter_that_does_nothing_is_pointed_out(fresh, words):
    model = wrap(adapted(fresh("llama"), "q_proj", init_lora_weights=True), words)
    (check,) = [check for check in model.card.checks if check.name == "adapter"]
    assert model.card.colour == check.colour == "amber" and "0.00e+00" in check.found


def test_a_plain_live_module_is_copied(fresh, words):
    module = fresh("gpt2")
    before, twin = state(module), copy.deepcopy(module)
    model = wrap(module, words, name="mine")
    assert list(module.state_dict()) == list(before)
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)
    torch.testing.assert_close(model.logits(TOKENS), logits_of(twin), atol=1e-5, rtol=1e-5)


def test_the_hash_of_a_live_model_follows_its_weights(fresh, words):
    module = fresh("gpt2")
    first = wrap(module, words).hash
    assert wrap(module, words).hash == first
    with torch.no_grad():
        module.transformer.h[0].attn.c_attn.weight[0, 0] += 1e-3
    assert wrap(module, words).hash != first


def test_the_user_s_tokenizer_is_left_alone(fresh, saved):
    """The bridge adds BOS and padding tokens to the tokenizer it is given."""
    tokenizer = AutoTokenizer.from_pretrained(saved("gpt2"), bos_token=None, pad_token=None)
    before = dict(tokenizer.special_tokens_map), len(tokenizer), tokenizer.padding_side
    assert "bos_token" not in before[0]
    wrap(fresh("gpt2"), tokenizer)
    assert (dict(tokenizer.special_tokens_map), len(tokenizer), tokenizer.padding_side) == before
