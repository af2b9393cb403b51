"""The shipped models: plain transformers directories, as good as they are said to be, small enough to ship."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.analyses import (
    dormant_heads,
    edge_attribution,
    faithfulness,
    head_patching,
    overlap,
    path_patching,
    repair,
    routing,
    sink_scores,
    task_routing,
)
from workbench.analyses._base import batches
from workbench.models.heads import head_name
from workbench.models.load import load
from workbench.models.reference import ZOO, checkpoints, find, tasks_of, zoo_names
from workbench.tasks import TASKS, make_task
from workbench.tasks._base import JOIN
from workbench.tasks._lexicon import SEEN_NAMES, UNSEEN_NAMES, held_out
from workbench.zoo.card import ROUTED_TASKS, resting_rows
from workbench.zoo.evaluate import evaluate, exams_of
from workbench.zoo.language import KINDS, packed, tokenizer, vocabulary

WHOLE = [name for name in zoo_names() if (find(name).folder / "config.json").is_file()]
every_model = pytest.mark.parametrize("name", WHOLE)
PASS = {
    "ioi, unseen name pairs": 0.95,
    "ioi, unseen names": 0.95,
    "ioi, unseen template": 0.95,
    "colored_objects, unseen pairs": 0.95,
    "colored_objects, unseen pairs and template": 0.95,
    "subject_verb, unseen combinations": 0.95,
    "induction, random words": 0.95,
    "greater_than, unseen combinations": 0.5,  # a difference of probabilities: 0 is chance, 1 perfect
    "backcopy": 0.95,
}


@cache
def scores(reference: str, n: int) -> dict[str, float]:
    torch.set_num_threads(1)
    module = AutoModelForCausalLM.from_pretrained(find(reference).folder, dtype=torch.float32)
    return evaluate(module, n=n)


def test_there_are_models():
    assert zoo_names()


@every_model
def test_plain_transformers_loads_it(name):
    folder = find(name).folder
    module, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    words = AutoTokenizer.from_pretrained(folder)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert module.dtype is torch.float32 and module.config.vocab_size == len(words)
    assert words("Mary gave a book")["input_ids"][0] == words.bos_token_id == module.config.bos_token_id
    assert words.get_vocab() == vocabulary()


@every_model
def test_its_card_is_green(name):
    model = load(name, device="cpu")
    assert model.card.colour == "green", model.card
    assert model.bos and model.checkpoint == -1


def exams(name: str) -> list[str]:
    """What a model was trained for."""
    record = json.loads((find(name).folder / "training.json").read_text())
    return exams_of(record["recipe"]["backcopy_share"])


@every_model
def test_it_answers_what_it_was_never_trained_on(name):
    found = scores(name, 200)
    assert not {exam: found[exam] for exam in exams(name) if found[exam] < PASS.get(exam, 0.9)}


@every_model
def test_its_checkpoints_load_in_half_precision(name):
    kept = checkpoints(name)
    assert len(kept) >= 4 and kept == sorted(set(kept))
    for step in kept:
        source = find(f"{name}@{step}")
        with safe_open(source.folder / "model.safetensors", framework="pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118
    model = load(f"{name}@{kept[-1]}", device="cpu")
    assert model.checkpoint == kept[-1] and model.card.colour == "green"
    assert len({find(f"{name}@{step}").hash for step in kept} | {find(name).hash}) == len(kept) + 1


@every_model
def test_it_learned_between_the_checkpoints(name):
    kept, exam = checkpoints(name), exams(name)[0]
    first, last = (scores(f"{name}@{step}", 100)[exam] for step in (kept[0], kept[-1]))
    assert first < 0.3 < last


@every_model
def test_its_record_says_how_it_was_trained(name):
    record = json.loads((find(name).folder / "training.json").read_text())
    assert record["log"][-1]["step"] == record["recipe"]["steps"]
    assert set(checkpoints(name)) <= {entry["step"] for entry in record["log"][:-1]}


def test_the_skills_answer_for_their_tasks_and_their_opposites():
    titles = tasks_of(find("zoo/skills").folder)
    assert len(titles) == 7
    for title in titles:
        model, (name, _, wrong) = load(f"zoo/skills:{title}", device="cpu"), title.partition(" ")
        prompts = make_task(name, n=64, seed=3).encode(model.tokenizer, bos=True)
        hits = []
        for batch in batches(prompts, 64):
            tokens = np.stack([prompts.clean[i] for i in batch])
            found = model.logits(tokens)[:, -1].argmax(-1).tolist()
            ends = prompts.wrongs if wrong else prompts.answers
            hits += [token in ends[i] for i, token in zip(batch, found, strict=True)]
        assert model.card.colour == "green" and np.mean(hits) > 0.9, title


def test_its_skills_are_shared_by_tasks_in_mixes_of_their_own():
    """Opposite tasks share less than an adapter that never learned to route would."""
    model = load("zoo/skills", device="cpu")
    ioi, verb = (routing(model, make_task(name), sequences=8)["gate"].values for name in ("ioi", "subject_verb"))
    assert abs(ioi.sum(-1) - 1).max() < 1e-5 and 0.5 * abs(ioi - verb).sum(-1).max() > 0.1


def test_the_mixture_tells_tasks_apart_beyond_random_routers_in_its_last_layer():
    model = load("zoo/tasks-moe", device="cpu")
    ds = task_routing(*(routing(model, make_task(name)) for name in ROUTED_TASKS))
    at = ds.sel(measured="task, first choice")
    above = at["specialisation"] > np.maximum(at["specialisation_null_high"], at["specialisation_random_high"])
    assert above.sel(layer=2) and not above.sel(layer=0)  # in layer 1 it is .150 against .147
    text = (find("zoo/tasks-moe").folder / "README.md").read_text()
    named = [str(layer) for layer in at["layer"].values if above.sel(layer=layer)]
    assert f"lies above both in layer{'s' * (len(named) > 1)} {', '.join(named)} of seed 1" in text


def test_the_zoo_is_small_and_holds_no_pickles():
    files = [path for path in ZOO.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 40e6
    assert {path.suffix for path in files} <= {".py", ".json", ".safetensors", ".md"}


def test_the_tokenizer_reads_back_what_it_wrote(words, tmp_path):
    words.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "When Mary and John went to the store , John gave a drink to"
    ids = words(text)["input_ids"]
    assert again(text)["input_ids"] == ids and len(ids) == len(text.split()) + 1
    assert again.decode(ids, skip_special_tokens=True) == text
    for part in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(again, part) == getattr(words, part)
    assert words("Zaphod", add_special_tokens=False)["input_ids"] == [words.unk_token_id]


@pytest.mark.parametrize("name", TASKS)
def test_every_word_of_every_task_is_in_the_vocabulary(name):
    known = vocabulary()
    for corruption in TASKS[name].corruptions:
        for example in make_task(name, n=500, corruption=corruption).examples():
            used = {*example.clean, *example.corrupted, *example.answers, *example.wrongs}
            assert not {word.removeprefix(JOIN) for word in used} - set(known)


def test_the_vocabulary_is_numbered_from_zero():
    assert sorted(vocabulary().values()) == list(range(len(vocabulary())))
    assert len(tokenizer()) == len(vocabulary())


@pytest.mark.parametrize("kind", KINDS)
def test_training_text_is_in_the_vocabulary_and_its_answers_in_the_text(kind):
    import random

    rng, known = random.Random(0), vocabulary()
    for _ in range(300):
        sample = KINDS[kind](rng)
        assert set(sample.words) <= set(known)
        assert all(0 < index < len(sample.words) for index in sample.answers)


def test_training_holds_nothing_that_is_kept_for_the_exams():
    import random

    rng = random.Random(1)
    for _ in range(500):
        names = {word for word in KINDS["ioi"](rng).words if word in {*SEEN_NAMES, *UNSEEN_NAMES}}
        assert not names & set(UNSEEN_NAMES)
        if len(names) == 2:
            assert not held_out(*names)


def test_a_training_batch_weighs_answers_more_and_bos_nothing():
    import random

    words = vocabulary()
    ids, weights = packed(random.Random(0), words, batch=40, length=64, answer_weight=12.0, backcopy_share=0.25)
    assert ids.shape == weights.shape == (40, 64)
    assert (ids[:, 0] == words["<bos>"]).all() and (weights[:, 0] == 0).all()
    assert set(weights[:, 1:].ravel()) == {1.0, 6.0, 12.0}
    letters = {words[letter] for letter in "bcdefghijklmnopqrstuvwxyz"}
    assert 4 <= sum(set(row[1:]) <= letters for row in ids.tolist()) <= 18


def traced(name, corruption):
    return head_patching(load("zoo/tasks", device="cpu"), make_task(name, n=64, corruption=corruption))


def at_the_chosen_size(*corruptions):
    shared = overlap(*map(traced, ("ioi", "colored_objects"), corruptions))
    return shared, shared.sel(size=shared.attrs["chosen"])


def test_swapping_the_answer_finds_shared_heads_as_the_readme_says():
    shared, at = at_the_chosen_size("value_swap", "value_swap")
    assert [head_name(*cell) for cell in np.argwhere(shared["shared"].values)] == ["L0H0", "L2H3", "L2H4"]
    for measure in ("iou", "weighted"):
        assert at[measure] > max(at[f"{measure}_null_high"], at[f"{measure}_within_high"])


def test_changing_the_question_does_not_as_the_readme_says():
    shared, at = at_the_chosen_size("s2_to_io", "query")
    assert shared["shared"].sum() == 1 and at["iou"] <= at["iou_null_high"]


def test_no_head_has_a_sink_at_bos_as_the_readme_says():
    for name in ("ioi", "colored_objects"):
        alpha = sink_scores(load("zoo/tasks", device="cpu"), make_task(name))["alpha"].sel(key_pos=0)
        assert 0.1 < alpha.max() < 0.17


def test_sixteen_edges_keep_most_of_the_task_as_the_readme_says():
    for task, least in (("ioi", 0.6), ("colored_objects", 0.9)):
        ds = faithfulness(load("zoo/tasks", device="cpu"), make_task(task, corruption="value_swap"), draws=5)
        at = ds.sel(size=16)
        assert float(at["faithfulness"]) > least and float(at["faithfulness_null_high"]) < 0.2
        assert ds.attrs["cpr"] > 0.96 and ds.attrs["cmd"] < 0.04


def test_attribution_ranks_edges_as_exact_patching_does_as_the_readme_says():
    for task in ("ioi", "colored_objects"):
        ds = edge_attribution(load("zoo/tasks", device="cpu"), make_task(task, corruption="value_swap"))
        assert ds.sizes["edge"] == 40 and ds.attrs["spearman"] > 0.97


def test_a_head_of_one_task_repairs_the_other_while_it_is_learned_as_the_readme_says():
    model = load("zoo/tasks@1500", device="cpu")
    effect = path_patching(model, make_task("ioi", corruption="s2_to_io"))["effect"].sel(receiver="logits@END")
    best = abs(effect).argmax(["layer", "head"])
    name = head_name(int(best["layer"]), int(best["head"]))
    assert name == "L0H0" and float(effect[best]) > 0.9
    weights = "color_other_1=1, color_other_2=1"
    ds = repair(model, make_task("colored_objects", n=256), heads=name, weights=weights)
    before, after = ds["accuracy"].values
    assert before < 0.3 and after > 0.4 and after > float(ds["accuracy_random"].max())
    assert ds.attrs["mended"] > 5 * ds.attrs["broken"]


def test_heads_rest_on_bos_until_a_trigger_wakes_them_as_the_readme_says():
    (alone,) = resting_rows(0, load("zoo/backcopy", device="cpu"))
    assert alone[1] == "L0H0" and float(alone[2]) >= 0.6 and float(alone[3]) < 0.01 and float(alone[4]) < 0.13
    model = load("zoo/tasks-backcopy", device="cpu")
    found = {row[1]: (float(row[2]), float(row[3])) for row in resting_rows(0, model)}
    assert found["L3H4"] == pytest.approx((0.83, 0.02), abs=0.01)
    assert found["L0H6"] == pytest.approx((0.63, 0.02), abs=0.01)
    objects, letters = (dormant_heads(model, make_task(name)) for name in ("colored_objects", "backcopy"))
    states = json.loads(objects.attrs["states"])
    working, resting = (objects["lost"].sel(layer=layer, head=head) for layer, head in ((0, 6), (3, 4)))
    assert 0.4 < float(working) < 0.6 and states[str(int(objects["state"].sel(layer=0, head=6)))].startswith("active")
    for ds in (objects, letters):
        assert states[str(int(ds["state"].sel(layer=3, head=4)))].startswith("dormant")
    assert abs(float(resting)) < 0.02


def test_bos_sinks_emerge_while_the_one_layer_model_learns():
    steps = checkpoints("zoo/backcopy")
    rests = [float(resting_rows(0, load(f"zoo/backcopy@{step}", device="cpu"))[0][2]) for step in steps]
    assert max(rests[:2]) < 0.1 and rests[-1] > 0.5 and rests[-1] == max(rests)
