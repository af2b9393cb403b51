"""What all tests share: settings, two tokenizers, and tiny random models saved once for the whole run."""

import os

# Read when the libraries are imported, so set before any of them is.
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
os.environ["REPLICATE_MODEL"] = "/no/such/model"  # a notebook that asks for a large model does without it here

import asyncio
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# Large weights, so that attention of an untrained model is far from uniform and every head matters.
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
GROUPED = {**SHAPE, "num_key_value_heads": 2, "max_position_embeddings": 128}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.3},
    "gpt_neox": {**SHAPE, "intermediate_size": 64, "max_position_embeddings": 128},
    "llama": {**GROUPED, "intermediate_size": 64},
    "qwen3": {**GROUPED, "intermediate_size": 64, "head_dim": 8},
    "gemma2": {**GROUPED, "intermediate_size": 64, "head_dim": 8, "initializer_range": 0.1},
    "mixtral": {**GROUPED, "intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {**GROUPED, "intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2},
    "mistral": {**GROUPED, "intermediate_size": 64, "sliding_window": 6},
    "qwen3_moe": {**GROUPED, "head_dim": 8, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2},
    "phi3": {**GROUPED, "intermediate_size": 64},
    "granite": {**GROUPED, "intermediate_size": 64, "residual_multiplier": 0.5, "logits_scaling": 2.0}
    | {"attention_multiplier": 0.5, "embedding_multiplier": 3.0},
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of its own for every test."""
    folder = tmp_path / "home"
    monkeypatch.setenv("WORKBENCH_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Closes the event loops that Panel makes where none runs and leaves open, to be warned of in some later test."""
    made, make = [], asyncio.new_event_loop

    def kept() -> asyncio.AbstractEventLoop:
        loop = make()
        if threading.current_thread() is threading.main_thread():
            made.append(loop)
        return loop

    monkeypatch.setattr(asyncio, "new_event_loop", kept)
    yield
    for loop in made:
        if not loop.is_running():
            loop.close()


@pytest.fixture(scope="session")
def words() -> Any:
    """The zoo's word-level tokenizer."""
    from workbench.zoo.language import tokenizer

    return tokenizer()


@pytest.fixture(scope="session")
def bpe() -> Any:
    """A byte-level BPE tokenizer as GPT-2's, trained on the tasks' own text; digits come in pairs, as in GPT-2."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from workbench.tasks import TASKS, make_task
    from workbench.tasks._base import render

    texts = []
    for name, family in TASKS.items():
        for corruption in family.corruptions:
            for example in make_task(name, n=600, seed=5, corruption=corruption).examples():
                pair = render(example, spaced=False)
                texts += [pair.clean + answer for answer in (*pair.answers[:2], *pair.wrongs[:2])] + [pair.corrupted]
    core = Tokenizer(models.BPE())
    pairs = pre_tokenizers.Split(Regex(r" ?\d{1,2}"), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([pairs, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    end = "<|endoftext|>"
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=3000, special_tokens=[end], initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=end, eos_token=end, unk_token=end)


def build(family: str, tokenizer: Any, **changes: Any) -> Any:
    """A random causal language model of a family, in evaluation mode, the same at every call."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    shape = FAMILIES[family] | changes
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **special, **shape)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="session")
def fresh(words: Any) -> Callable[..., Any]:
    """`fresh(family)`: a new tiny random model, as plain transformers makes it."""
    return lambda family, **changes: build(family, words, **changes)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, fresh: Callable, words: Any) -> Callable[[str], Path]:
    """`saved(family)`: the directory of a tiny random model with the zoo's tokenizer."""

    @cache
    def save(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        fresh(family).save_pretrained(folder)
        words.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def traced(saved: Callable[[str], Path]) -> Callable[..., Any]:
    """`traced(family)`: a saved tiny model, loaded once for tests that only read it."""
    from workbench.models.load import load

    @cache
    def loaded(family: str, **options: Any) -> Any:
        return load(saved(family), device="cpu", **options)

    return loaded


@pytest.fixture(scope="session")
def zoo_model() -> Any:
    """The shipped model of the tour."""
    from workbench.models.load import load

    return load("zoo/tasks", device="cpu")
