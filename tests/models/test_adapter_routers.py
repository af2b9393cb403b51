"""What is read of a routed adapter is what its layers mix their skills with; loading one loses and invents nothing."""

import copy
import functools
import json
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, PolyConfig, get_peft_model
from peft.tuners.lora import ArrowConfig, create_arrow_model
from planted_adapters import KINDS, MIX, SKILLS, TARGETS, TASKS, K, by_hand, linears, make, poly, xlora

from workbench import results
from workbench.analyses import head_patching
from workbench.models.adapter_files import save_adapter
from workbench.models.adapter_routers import AdapterRouters
from workbench.models.ends import unembed
from workbench.models.load import load, wrap
from workbench.models.reference import ModelError
from workbench.models.routers import WEIGHTS, RouterError, closing
from workbench.models.trunk import share_weights
from workbench.tasks import make_task

TOKENS = torch.from_numpy(np.random.default_rng(4).integers(3, 400, (3, 9)))
RULE = {"poly": "sigmoid over its sum", "mhr": "sigmoid over its sum", "arrow": "softmax over the chosen"}
every_kind = pytest.mark.parametrize("kind", KINDS)
CHOSEN = {"xlora_top": K, "arrow": K}


@pytest.fixture(scope="module")
def made(fresh, words, tmp_path_factory):
    """`made(kind)`: the PEFT model, its plain base, and the folder of what it was made from."""

    @functools.cache
    def build(kind):
        folder = tmp_path_factory.mktemp(kind)
        return make(kind, fresh, folder, words), fresh("llama"), folder

    return build


@pytest.fixture(scope="module")
def routers_of(made):
    @functools.cache
    def build(kind, task=TASKS[1], name=""):
        module = share_weights(made(kind)[0].get_base_model())
        return AdapterRouters(module, "model.layers", TASKS, task=task, name=name)

    return build


@pytest.fixture(scope="module")
def on_disk(made, words, tmp_path_factory):
    """`on_disk(kind)`: the directory of the adapter, to be loaded."""

    @functools.cache
    def save(kind):
        folder = tmp_path_factory.mktemp(f"saved_{kind}")
        save_adapter(made(kind)[0], folder)
        folder = folder / "arrow_router" if kind == "arrow" else folder
        words.save_pretrained(folder)
        if kind in ("poly", "mhr"):
            (folder / "workbench.json").write_text(json.dumps({"tasks": list(TASKS)}))
        return folder

    return save


def live_logits(module, task=1):
    """Logits of peft's own run, on a copy: X-LoRA's first pass leaves transformers' hooks behind."""
    own = share_weights(module)
    with torch.no_grad():
        if hasattr(linears(module)[0, "q_proj"], "poly_router"):
            return own.base_model(input_ids=TOKENS, task_ids=torch.full((len(TOKENS),), task)).logits
        return own(input_ids=TOKENS).logits


def routed(routers, tokens=TOKENS, **options):
    found = []
    normed = routers.run(tokens, found.append, **options)
    with torch.no_grad():
        return found, unembed(routers.module, normed)


def dense(layer):
    return torch.zeros_like(layer.logits).scatter(-1, layer.chosen, layer.weights)


def name_of(kind, target, split=0):
    return f"{target}/{split}" if kind == "mhr" else target


@every_kind
def test_the_whole_model_is_its_skills_added_up_by_hand(kind, made, routers_of):
    module, base, _ = made(kind)
    expected, weights = by_hand(kind, module, base, TOKENS, task=1)
    torch.testing.assert_close(live_logits(module), expected, atol=2e-5, rtol=1e-4)
    for target in TARGETS:
        for split in range(2 if kind == "mhr" else 1):
            found, logits = routed(routers_of(kind, name=name_of(kind, target, split)))
            torch.testing.assert_close(logits, live_logits(module), atol=0, rtol=0)
            for layer in found:
                own = weights[layer.layer, target][:, :, split]
                torch.testing.assert_close(dense(layer), own.expand_as(layer.logits), atol=1e-6, rtol=1e-5)


@every_kind
def test_the_interface_is_that_of_a_mixture_of_experts(kind, routers_of):
    routers = routers_of(kind)
    names = [name_of(kind, target, split) for target in TARGETS for split in range(2 if kind == "mhr" else 1)]
    assert (routers.layers, routers.experts, routers.modules) == ([0, 1], SKILLS, names)
    assert routers.name == names[0] and routers.k == CHOSEN.get(kind, SKILLS)
    for layer in routed(routers)[0]:
        rule = routers.rules[layer.layer]
        assert rule.weights == RULE.get(kind, "softmax over all") and rule.factor == 1
        assert layer.chosen.dtype == torch.int64 and layer.chosen.shape == (3, 9, routers.k)
        assert (layer.weights.diff(dim=-1) <= 0).all(), "best first"
        torch.testing.assert_close(layer.weights, WEIGHTS[rule.weights](layer.logits, layer.chosen))
        if kind != "xlora_top":  # whose softmax is over all
            torch.testing.assert_close(layer.weights.sum(-1), torch.ones(3, 9))
    normed = routers.run(TOKENS)
    expected = -routed(routers)[1][:, :-1].log_softmax(-1).gather(-1, TOKENS[:, 1:, None])[..., 0]
    torch.testing.assert_close(routers.losses(normed, TOKENS), expected)


def test_poly_routes_by_task(routers_of):
    for task, mix in zip(TASKS, MIX, strict=True):
        for layer in routed(routers_of("poly", task))[0]:
            torch.testing.assert_close(dense(layer), mix.expand(3, 9, -1))
    assert not torch.equal(routed(routers_of("poly", TASKS[0]))[1], routed(routers_of("poly", TASKS[1]))[1])


@pytest.mark.parametrize(("kind", "idle"), [("poly", 0), ("mhr", 3), ("xlora", 3), ("xlora_top", 3)])
def test_muting_an_unused_skill_changes_nothing_to_the_last_bit(kind, idle, routers_of):
    routers = routers_of(kind)
    plain, logits = routed(routers)
    assert not any((dense(layer)[..., idle] > 0).any() for layer in plain)
    muted, same = routed(routers, rescore={0: closing(idle), 1: closing(idle)})
    assert torch.equal(same, logits)
    for before, after in zip(plain, muted, strict=True):
        assert torch.equal(dense(before), dense(after)) and (after.logits[..., idle] == -torch.inf).all()


def test_muting_a_skill_that_arrow_does_not_choose_changes_nothing_to_the_last_bit(routers_of):
    routers, one = routers_of("arrow"), TOKENS[:1, :1]
    (first, *_), logits = routed(routers, one)
    idle = sorted(set(range(SKILLS)) - set(first.chosen.flatten().tolist()))[0]
    assert torch.equal(routed(routers, one, rescore={0: closing(idle)})[1], logits)


@every_kind
def test_a_muted_skill_gets_nothing_and_the_others_are_weighed_anew(kind, made, routers_of):
    routers, (module, base, _) = routers_of(kind, task=TASKS[0]), made(kind)
    before = routed(routers)[0][0]
    skill = int(before.chosen[..., 0].flatten().bincount().argmax())
    after, logits = routed(routers, rescore={0: closing(skill)})
    assert not dense(after[0])[..., skill].any()
    if kind in ("poly", "xlora"):  # dense: what is left, over its sum
        left = dense(before) * (torch.arange(SKILLS) != skill)
        torch.testing.assert_close(dense(after[0]), left / left.sum(-1, keepdim=True))
    change = {(0, "q_proj"): lambda weights: _with_split(weights, dense(after[0]))}
    torch.testing.assert_close(logits, by_hand(kind, module, base, TOKENS, change=change)[0], atol=2e-5, rtol=1e-4)


def _with_split(weights, first):
    """Weights [row, pos, split, skill] with those of the first split replaced."""
    return torch.cat([first[:, :, None], weights[:, :, 1:].expand(*first.shape[:2], -1, -1)], 2)


@every_kind
@pytest.mark.parametrize("where", ["all", "some"])
def test_forcing_a_skill_is_running_that_skill_by_hand(kind, where, made, routers_of):
    """At all tokens, and at some: for Poly each token is then a row of its own."""
    routers, (module, base, _) = routers_of(kind, task=TASKS[0]), made(kind)
    here = torch.zeros(3, 9, dtype=bool)
    here[:, :: 2 if where == "some" else 1] = True
    alone = torch.eye(SKILLS)[2]

    def force(chosen, weights):
        slot = torch.arange(weights.shape[-1]) == 0
        forced = torch.where(slot, 2, chosen), slot.float().expand_as(weights)
        return tuple(torch.where(here[..., None], new, old) for new, old in zip(forced, (chosen, weights), strict=True))

    change = {
        (1, "v_proj"): lambda weights: _with_split(
            weights, torch.where(here[..., None], alone, weights[:, :, 0].expand(3, 9, SKILLS))
        )
    }
    expected, _ = by_hand(kind, module, base, TOKENS, change=change)
    found = routed(routers.select(TASKS[0], name_of(kind, "v_proj")), reroute={1: force})[1]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert not torch.equal(found, routed(routers)[1])


@every_kind
def test_padding_changes_nothing(kind, routers_of):
    padded = TOKENS.clone()
    padded[1, 5:] = 0
    found, alone = [], []
    routers_of(kind).run(padded, found.append, lengths=torch.tensor([9, 5, 9]))
    routers_of(kind).run(TOKENS[1:2, :5], alone.append)
    for several, single in zip(found, alone, strict=True):
        torch.testing.assert_close(dense(several)[1:2, :5], dense(single), atol=1e-5, rtol=1e-5)


@every_kind
def test_nothing_is_left_behind(kind, routers_of):
    routers = routers_of(kind)
    before = {name: set(vars(part)) for name, part in routers.module.named_modules()}
    with pytest.raises(ZeroDivisionError):
        routers.run(TOKENS, lambda layer: 1 / 0, rescore={0: closing(1)})
    for name, part in routers.module.named_modules():
        assert not part._forward_hooks and not part._forward_pre_hooks and set(vars(part)) == before[name]
    inner = linears(routers.module)[0, "q_proj"].forward.__self__
    assert "get_maybe_topk_scalings" not in vars(inner)


def refused(module, match, task=TASKS[0], name=""):
    with pytest.raises(RouterError, match=match):
        AdapterRouters(module.get_base_model(), "model.layers", TASKS, task=task, name=name)


def test_a_router_that_is_not_what_it_seems_is_refused(fresh):
    module = poly(fresh("llama"))
    linear = linears(module)[1, "q_proj"]
    router = linear.poly_router["default"]
    plain, forward = router.forward, linear.forward
    router.forward = lambda **given: plain(**given) ** 2
    refused(module, "weights of layer 1 are not a sigmoid over its sum")
    router.forward = plain
    linear.forward = lambda x, task_ids: forward(x, task_ids=(task_ids + 1) % 3) * 1.01
    refused(module, "q_proj of layer 1 does not give its skills mixed by the weights that were read")
    linear.forward = forward
    linear.poly_lora_B["default"].data.zero_()
    refused(module, "q_proj of layer 1 gives the same without its skills.*never trained")
    refused(module, "no routed module 'c_attn'; there are: q_proj, v_proj", name="c_attn")
    refused(module, "not trained on the task 'greater_than'; it knows: ioi, colored_objects", task="greater_than")


def test_an_x_lora_without_one_softmax_is_refused(made, fresh):
    paths = [str(made("xlora")[2] / f"skill_{index}") for index in range(SKILLS)]
    base = fresh("llama")
    base.config.use_cache = False
    refused(xlora(base, paths, top=None, enable_softmax=False), "must come from one softmax")


def test_a_model_without_skills_to_route_is_refused(fresh):
    with pytest.raises(RouterError, match="no routed adapter"):
        AdapterRouters(fresh("llama"), "model.layers")
    options = {"n_tasks": 2, "n_skills": 1, "target_modules": ["q_proj"], "init_weights": False}
    module = get_peft_model(fresh("llama"), PolyConfig(r=2, **options)).eval()
    refused(module, "one skill, so nothing is routed")


def test_a_mixture_of_experts_has_no_modules(traced):
    model = traced("mixtral")
    assert model.routed("ioi").routers is model.routers
    with pytest.raises(ModelError, match="not at modules like 'q_proj'"):
        model.routed("ioi", "q_proj")


def test_a_plain_lora_does_not_route(fresh, words):
    module = get_peft_model(fresh("llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    with pytest.raises(ModelError, match="no experts"):
        assert wrap(module, words).routers


@every_kind
def test_a_loaded_adapter_routes_as_the_live_one(kind, on_disk, made, words):
    for model in (load(on_disk(kind), device="cpu"), wrap(made(kind)[0], words, tasks=tasks_of(kind))):
        found = model.routed(TASKS[1], name_of(kind, "v_proj")).routers
        torch.testing.assert_close(routed(found)[1], live_logits(made(kind)[0]), atol=1e-5, rtol=1e-5)
        assert model.card.colour != "red", model.card


def tasks_of(kind):
    return ",".join(TASKS) if kind in ("poly", "mhr") else ""


@pytest.mark.parametrize("kind", ["poly", "mhr"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_route_is_the_model_as_that_task_uses_it(kind, dtype, on_disk, made):
    for index, task in enumerate(TASKS):
        model = load(on_disk(kind), device="cpu", route=task, dtype=dtype)
        assert model.card.colour == "green" and model.attrs["route"] == task, model.card
        twin = copy.deepcopy(made(kind)[0])
        for value in twin.parameters():
            value.data = value.data.to(getattr(torch, dtype))
        expected = live_logits(twin, task=index)
        near = {"float32": 2e-5, "float64": 1e-9}[dtype]
        with torch.no_grad():
            torch.testing.assert_close(model.plain(TOKENS).logits, expected, atol=near, rtol=near)
        torch.testing.assert_close(model.logits(TOKENS.numpy()), expected, atol=2e-5, rtol=2e-5)
    assert head_patching(model, make_task("subject_verb", n=8), draws=10).attrs["route"] == TASKS[-1]
    with pytest.raises(ModelError, match="no experts"):
        assert model.routers


def test_a_route_leaves_the_live_model_alone(made, words):
    module = made("poly")[0]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    wrap(module, words, tasks=tasks_of("poly"), route="ioi")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "reason"), [("poly", "load it with route= and one of ioi, "), ("xlora", "does not carry X-LoRA's routing")]
)
def test_what_the_bridge_does_not_carry_is_refused(kind, reason, on_disk):
    model = load(on_disk(kind), device="cpu")
    assert model.card.colour == "amber" and reason in repr(model.card)
    with pytest.raises(ModelError, match=f"only the routing can be traced: .*{reason}"):
        head_patching(model, make_task("subject_verb", n=8))
    for ask in (lambda: model.logits(TOKENS.numpy()), lambda: model.trunk, lambda: model.edges, lambda: model.scanner):
        with pytest.raises(ModelError, match="only the routing"):
            ask()
    if kind == "poly":
        with pytest.raises(ModelError, match="load the model with route="):
            model.routers.run(TOKENS)


def test_arrow_on_matrices_of_their_own_is_carried_live(on_disk, made):
    model = load(on_disk("arrow"), device="cpu")
    assert model.card.colour == "green", model.card
    torch.testing.assert_close(model.logits(TOKENS.numpy()), live_logits(made("arrow")[0]), atol=2e-5, rtol=1e-4)


def test_arrow_on_a_fused_matrix_is_not_carried_but_read(fresh, words, tmp_path):
    paths = []
    for index in range(3):
        torch.manual_seed(index)
        options = {"target_modules": ["c_attn"], "fan_in_fan_out": True, "init_lora_weights": False}
        paths.append(tmp_path / str(index))
        get_peft_model(fresh("gpt2"), LoraConfig(r=1, **options)).save_pretrained(paths[-1])
    module = create_arrow_model(fresh("gpt2"), list(map(str, paths)), ArrowConfig(top_k=2, rng_seed=0)).eval()
    model = wrap(module, words)
    assert model.card.colour == "amber" and "Arrow's routing" in model.unbridged
    with torch.no_grad():
        torch.testing.assert_close(routed(model.routers)[1], module(input_ids=TOKENS).logits)


def test_poly_on_a_matrix_that_is_no_linear_map_is_refused(on_disk, saved, tmp_path):
    folder = shutil.copytree(on_disk("poly"), tmp_path / "gpt2")
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": str(saved("gpt2")), "target_modules": ["c_attn"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"Conv1D.*torch\.nn\.Linear"):
        load(folder, device="cpu")


def test_what_peft_itself_saves_of_x_lora_is_refused(made, words, tmp_path):
    made("xlora")[0].save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lack its classifier.*save_adapter"):
        load(tmp_path, device="cpu")


def test_files_hold_no_pickle_and_pickled_skills_are_refused(on_disk, tmp_path):
    for kind in ("xlora", "poly"):
        files = {path.suffix for path in on_disk(kind).rglob("*") if path.is_file()}
        assert files <= {".safetensors", ".json", ".md"}, files
    folder = shutil.copytree(on_disk("xlora"), tmp_path / "copy")
    (folder / "2" / "adapter_model.safetensors").rename(folder / "2" / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"2' has no adapter_model\.safetensors"):
        load(folder, device="cpu")


def test_weights_that_are_not_whole_are_refused(on_disk, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(on_disk("poly"), tmp_path / "copy")
    weights = load_file(folder / "adapter_model.safetensors")
    weights.pop(next(name for name in weights if "module_logits" in name or "poly_router" in name))
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"not whole.*poly_router"):
        load(folder, device="cpu")


@pytest.mark.parametrize("kind", ["xlora", "arrow"])
def test_the_hash_follows_skills_in_folders_of_their_own(kind, on_disk, tmp_path):
    from safetensors.torch import load_file, save_file

    whole = shutil.copytree(on_disk(kind).parent if kind == "arrow" else on_disk(kind), tmp_path / "copy")
    folder, skill = (whole / "arrow_router", whole / "task_1") if kind == "arrow" else (whole, whole / "1")
    before = load(folder, device="cpu")
    weights = load_file(skill / "adapter_model.safetensors")
    save_file({name: value * 1.1 for name, value in weights.items()}, skill / "adapter_model.safetensors")
    after = load(folder, device="cpu")
    assert before.hash == load(on_disk(kind), device="cpu").hash != after.hash
    assert not torch.equal(routed(before.routers)[1], routed(after.routers)[1])


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        ("poly", {"route": "greater_than"}, "no route of a task 'greater_than'; it has: ioi, colored_objects"),
        ("poly", {"tasks": "a,b,c"}, "are ioi, colored_objects, subject_verb, by its own file"),
        ("poly", {"merge": True}, "cannot be merged: Poly routes by task; load it with route="),
        ("xlora", {"merge": True}, "cannot be merged: X-LoRA routes every token by itself"),
        ("arrow", {"merge": True}, "cannot be merged: Arrow routes every token by itself"),
        ("xlora", {"route": "ioi"}, "does not route by task"),
        ("arrow", {"tasks": "ioi"}, "does not route by task"),
    ],
)
def test_options_an_adapter_cannot_follow_are_refused(kind, options, match, on_disk):
    with pytest.raises(ModelError, match=match):
        load(on_disk(kind), device="cpu", **options)


def test_tasks_without_a_file_are_named_or_numbered(made, words):
    module = made("poly")[0]
    assert wrap(module, words).tasks == ("0", "1", "2")
    assert wrap(module, words, tasks=tasks_of("poly")).tasks == TASKS
    for wrong in ("ioi,colored_objects", "ioi,ioi,subject_verb"):
        with pytest.raises(ModelError, match="routes 3 tasks, but these are named: ioi"):
            wrap(module, words, tasks=wrong)
    with pytest.raises(ModelError, match="not trained on the task 'ioi'; it knows: 0, 1, 2"):
        wrap(module, words).routed("ioi")


def test_results_of_two_routes_are_kept_apart(on_disk):
    specs = [{"reference": str(on_disk("poly")), "route": route} for route in TASKS[:2]]
    keys = {results.key_of(results.specify("head_patching", spec, "ioi", {})) for spec in specs}
    assert len(keys) == 2


def test_override_does_not_make_the_bridge_carry_it(on_disk):
    model = load(on_disk("xlora"), device="cpu", override=True)
    with pytest.raises(ModelError, match="only the routing"):
        head_patching(model, make_task("subject_verb", n=8))
