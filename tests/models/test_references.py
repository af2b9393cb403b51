"""A reference that leads nowhere good: one sentence that says what to do."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench.models.load import load
from workbench.models.reference import ModelError, checkpoints, find, zoo_names


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of a good directory, to be damaged."""
    return shutil.copytree(saved("gpt2"), tmp_path / "model")


def refusal(reference, **options) -> str:
    """The message of the error that loading gives: one sentence, or a cause and its mend."""
    with pytest.raises(ModelError) as caught:
        load(reference, **options)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    return message


def test_an_unknown_zoo_name_lists_the_known_ones():
    message = refusal("zoo/nothing")
    assert "zoo/nothing" in message and all(name in message for name in zoo_names())


@pytest.mark.parametrize("mark", ["77", "last", "-1"])
def test_an_unknown_checkpoint_lists_the_kept_ones(mark):
    name = zoo_names()[0]
    message = refusal(f"{name}@{mark}")
    assert mark in message and ", ".join(map(str, checkpoints(name))) in message


@pytest.mark.parametrize("reference", ["/no/such/directory", "./nowhere", "~/no/such/model", "a/b/c"])
def test_a_missing_directory(reference):
    assert f"no directory '{reference}'" in refusal(reference)


def test_the_hub_cannot_be_reached():
    message = refusal("someone/some-model")
    assert "someone/some-model" in message and "the path of a directory saved by transformers" in message


@pytest.mark.parametrize("reference", ["not a model", "what?"])
def test_no_reference_at_all(reference):
    assert "is not a model reference" in refusal(reference)


def test_pickled_weights_are_refused_with_the_conversion(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(2)}, folder / "pytorch_model.bin")
    message = refusal(folder)
    assert "pickled" in message and "save_pretrained(new_directory)" in message


def test_no_weights_at_all(folder):
    (folder / "model.safetensors").unlink()
    assert "no .safetensors weights" in refusal(folder)


@pytest.mark.parametrize("kept", [0, 4, 1000])
def test_truncated_weights(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-kept] if kept else b"")
    message = refusal(folder)
    assert "truncated or damaged" in message and "download it again" in message


def shard(folder) -> None:
    """Split the weights over two files with an index, as transformers saves large models."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def test_shards_load_and_a_missing_one_is_named(folder, saved):
    shard(folder)
    assert load(folder, device="cpu").card.colour == "green"
    (folder / "model-00002-of-00002.safetensors").unlink()
    message = refusal(folder)
    assert "model-00002-of-00002.safetensors" in message and "is missing" in message


@pytest.mark.parametrize("text", ["{", '{"metadata": {}}'])
def test_a_damaged_index(folder, text):
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refusal(folder)


def test_weights_that_lack_a_matrix_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "h.1.mlp.c_fc.weight" in refusal(folder)


def test_no_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "no tokenizer" in refusal(folder)


@pytest.mark.parametrize("text", ["{", '{"version": "1.0"}'])
def test_a_damaged_tokenizer(folder, text):
    (folder / "tokenizer.json").write_text(text)
    assert str(folder) in refusal(folder)


def test_no_configuration(folder):
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder)


@pytest.mark.parametrize("text", ["{", "{}", '{"model_type": "of tomorrow"}'])
def test_a_damaged_configuration(folder, text):
    (folder / "config.json").write_text(text)
    assert str(folder) in refusal(folder)


def test_an_unknown_dtype_lists_the_known_ones(saved):
    assert "float32, bfloat16, float16" in refusal(saved("gpt2"), dtype="int4")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there(saved):
    assert "'cpu'" in refusal(saved("gpt2"), device="cuda")


def test_bos_without_a_bos_token(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("bos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert not load(folder, device="cpu").bos
    assert "bos=False" in refusal(folder, device="cpu", bos=True)


def test_the_hash_follows_the_files(folder, saved):
    first = find(folder).hash
    assert first == find(saved("gpt2")).hash
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wte.weight"][0, 0] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    second = find(folder).hash
    config = json.loads((folder / "config.json").read_text()) | {"layer_norm_epsilon": 1e-3}
    (folder / "config.json").write_text(json.dumps(config))
    assert len({first, second, find(folder).hash}) == 3


def test_the_hash_of_an_adapter_follows_its_base(folder, fresh, tmp_path, words):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder)
    adapter = tmp_path / "adapter"
    settings = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    get_peft_model(base, settings).save_pretrained(adapter)
    words.save_pretrained(adapter)
    first = find(adapter).hash
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wte.weight"][0, 0] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert find(adapter).hash != first


def test_a_prompt_longer_than_the_context_is_refused(traced):
    import numpy as np

    with pytest.raises(ModelError, match=r"129 tokens.*128"):
        traced("gpt2").logits(np.full((1, 129), 5))
