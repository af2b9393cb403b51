"""Models whose weights are set by hand, so that who is a sink, where, how strongly and why is known beforehand.

In both, attention writes nothing unless it is asked to, tokens have embeddings of one norm R with a flag dimension for
each planted token, and an MLP neuron that reads a flag writes a known amount along the primary direction.
"""

import math
from dataclasses import dataclass

import torch

LAYERS, WIDTH, HEADS, R, EPS = 8, 32, 4, 4.0, 1e-6
ORDINARY, UNREAD, READ, CONTENT = 6, 4, 5, 8  # dimensions of the Llama's residual stream; 0 is the primary direction
GATE, GATE_SHARED, UP_SHARED, DOWN_SHARED = 4.0, 2.0, 3.0, 0.1
SCORE, STRENGTH, FAINT, HEAD_OUT = 60.0, 4.0, 0.02, 5.0


@dataclass(frozen=True)
class Plant:
    """A token that gets `size` along the primary direction in one layer, and loses it in another."""

    word: str
    creation: int
    removal: int
    size: float


BOS = Plant("<bos>", 1, 7, 100.0)


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def rms(along: float) -> float:
    """Root mean square of a planted token's residual with `along` on the primary direction."""
    return math.sqrt((R * R + along * along) / WIDTH + EPS)


def llama(words, plants: list[Plant], writes: int | None = None, topped: bool = True):
    """A Llama of 8 layers with sinks at BOS and at the planted words.

    Where a planted sink is created, BOS gets 1 more along the primary direction (`topped`), through a neuron of its
    own and one it shares. With `writes`, head 0 of layer 4 attends to sinks with a negative size, where there are any,
    or else to all tokens but BOS; ordinary tokens' values then end up in that dimension: READ becomes the logit of the
    unused token 0, UNREAD nothing. All other logits are 0.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=128,
        attention_bias=True,
        rms_norm_eps=EPS,
        tie_word_embeddings=False,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=0,
    )
    module = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.fill_(1.0 if "norm" in name else 0.0)
        module.model.embed_tokens.weight.copy_(_embeddings(words, [BOS, *plants]))
        module.lm_head.weight[0, READ] = HEAD_OUT
        _neurons(module, plants, topped)
        if writes is not None:
            _head(module.model.layers[4].self_attn, writes)
    return module


def _embeddings(words, plants: list[Plant]) -> torch.Tensor:
    """[token, d]: a flag of 1 in the token's own dimension and random content, of norm R together."""
    found = torch.zeros(len(words), WIDTH)
    content = torch.randn(len(words), WIDTH - CONTENT, generator=torch.Generator().manual_seed(3))
    found[:, CONTENT:] = content / content.norm(dim=1, keepdim=True) * math.sqrt(R * R - 1)
    found[:, ORDINARY] = 1
    for flag, plant in enumerate(plants, 1):
        token = words.convert_tokens_to_ids(plant.word)
        found[token, ORDINARY], found[token, flag] = 0, 1
    return found


def _neurons(module, plants: list[Plant], topped: bool) -> None:
    bos = 0.0
    for layer in range(LAYERS):
        free, now = iter(range(64)), bos
        if layer == BOS.creation:
            _neuron(module, layer, next(free), {1: now}, BOS.size)
            bos += BOS.size
        for flag, plant in enumerate(plants, 2):
            if layer == plant.creation and topped:
                shared = DOWN_SHARED * silu(GATE_SHARED) * UP_SHARED
                _neuron(module, layer, next(free), {flag: 0.0}, plant.size - shared)
                _neuron(module, layer, next(free), {1: now}, 1 - shared)
                _neuron(module, layer, next(free), {flag: 0.0, 1: now}, shared, GATE_SHARED, UP_SHARED)
                bos += 1
            elif layer == plant.creation:
                _neuron(module, layer, next(free), {flag: 0.0}, plant.size)
            if layer == plant.removal:
                _eraser(module, layer, next(free), flag, plant.size)
        if layer == BOS.removal:
            _eraser(module, layer, next(free), 1, now)


def _neuron(module, layer, index, flags: dict[int, float], writes, gate=GATE, up=1.0) -> None:
    """A neuron that tokens with these flags open, at their present amount along the primary direction."""
    mlp = module.model.layers[layer].mlp
    for flag, along in flags.items():
        mlp.gate_proj.weight[index, flag] = gate * rms(along)
        mlp.up_proj.weight[index, flag] = up * rms(along)
    mlp.down_proj.weight[0, index] = writes / (silu(gate) * up)


def _eraser(module, layer, index, flag, along) -> None:
    """A neuron that one flag opens and that takes away what lies along the primary direction."""
    mlp = module.model.layers[layer].mlp
    mlp.gate_proj.weight[index, flag] = GATE * rms(along)
    mlp.up_proj.weight[index, 0] = rms(along)
    mlp.down_proj.weight[0, index] = -1 / silu(GATE)


def _head(attention, writes: int) -> None:
    """Head 0: a constant query, keys by the primary direction, on the rotary pair that turns least.

    Head 1 attends to all alike, so that masking any token is felt, though hardly.
    """
    slow, full = WIDTH // HEADS // 2 - 1, math.sqrt(WIDTH)
    attention.q_proj.bias[slow] = SCORE * math.sqrt(WIDTH / HEADS)
    attention.k_proj.weight[slow, 0] = -1 / full
    attention.v_proj.weight[0, ORDINARY] = rms(0)
    attention.o_proj.weight[writes, 0] = STRENGTH
    attention.v_proj.weight[WIDTH // HEADS, ORDINARY] = rms(0)
    attention.o_proj.weight[UNREAD, WIDTH // HEADS] = FAINT


def disturbed(words) -> float:
    """The loss of an ordinary token whose head 0 sees ordinary tokens only, in a model that writes to READ."""
    normed = STRENGTH / math.sqrt((R * R + STRENGTH**2) / WIDTH + EPS)
    return math.log(len(words) - 1 + math.exp(HEAD_OUT * normed))


def gpt2(words, word: str, creation: int, removal: int, size: float):
    """A GPT-2 of 8 layers in which a word is a sink at even positions only.

    Directions are pairs of dimensions of opposite sign, so that layer norm has no mean to take away: 0 and 1 are the
    primary direction, 2 and 3 the word, 4 and 5 even positions, 6 and 7 BOS.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(words),
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=128,
        activation_function="relu",
        layer_norm_epsilon=EPS,
        tie_word_embeddings=False,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    module = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.fill_(1.0 if "ln_" in name and "weight" in name else 0.0)
        content = torch.randn(len(words), WIDTH - CONTENT, generator=torch.Generator().manual_seed(3))
        content -= content.mean(1, keepdim=True)
        inner = module.transformer
        inner.wte.weight[:, CONTENT:] = content / content.norm(dim=1, keepdim=True) * R
        _pair(inner.wte.weight[words.convert_tokens_to_ids(word)], 2, 1.0)
        _pair(inner.wte.weight[words.bos_token_id], 6, 1.0)
        for position in range(2, 128, 2):
            _pair(inner.wpe.weight[position], 4, 1.0)
        flags = {"bos": 2.0, "word": 4.0}  # squared norm of a token's flags
        _relu(inner.h[BOS.creation].mlp, 0, {6: 1.0}, 0.0, {6: _scale(flags["bos"], 0)}, BOS.size)
        both = {2: _scale(flags["word"], 0), 4: _scale(flags["word"], 0)}
        _relu(inner.h[creation].mlp, 0, {2: 1.0, 4: 1.0}, -1.6, both, size)
        _relu(inner.h[creation].mlp, 1, {6: 1.0}, 0.0, {6: _scale(flags["bos"], BOS.size)}, 1.0)
        along = {0: size / math.sqrt(2) * _scale(flags["word"], size), 6: 0.0}
        _relu(inner.h[removal].mlp, 0, {0: 1.0, 6: -100.0}, -2.0, along, -size)
        _relu(inner.h[BOS.removal].mlp, 0, {6: 1.0}, 0.0, {6: _scale(flags["bos"], BOS.size + 1)}, -BOS.size - 1)
    return module


def _pair(row: torch.Tensor, start: int, value: float) -> None:
    row[start], row[start + 1] = value, -value


def _scale(flags: float, along: float) -> float:
    """What layer norm multiplies a token with."""
    return 1 / math.sqrt((R * R + flags + along * along) / WIDTH + EPS)


def _relu(mlp, index: int, weights: dict[int, float], bias: float, at: dict[int, float], writes: float) -> None:
    """A neuron that, at the normed coordinates given, writes this much along the primary direction."""
    for dim, weight in weights.items():
        mlp.c_fc.weight[dim, index] = weight
    mlp.c_fc.bias[index] = bias
    open_ = sum(weights[dim] * value for dim, value in at.items()) + bias
    _pair(mlp.c_proj.weight[index], 0, writes / open_ / math.sqrt(2))
