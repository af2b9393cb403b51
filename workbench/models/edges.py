"""A model seen as edges: what each head, MLP and the input adds to the residual stream, and who reads it."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vmap

from workbench.models.blocks import Recording
from workbench.models.ends import at_least_single
from workbench.models.graph import Graph
from workbench.models.reading import PARTS, matrix, reading_of, through
from workbench.models.trunk import Frame, Trunk, TrunkError

Metric = Callable[[Tensor], Tensor]  # last residuals [row, d_model] -> metric [row]


class Edges:
    """The edges of a trunk.

    Raises:
        TrunkError: when heads and MLPs of the family do not simply add to a residual stream.
    """

    def __init__(self, trunk: Trunk, names: Any) -> None:
        self.trunk = trunk
        self.readings = [reading_of(trunk, layer, names) for layer in range(trunk.n_layers)]
        self.outputs = [matrix(part.output)[0].T.unflatten(0, (trunk.n_heads, -1)) for part in trunk.parts]
        self.scales = [self._scale(layer) for layer in range(trunk.n_layers)]
        kv_heads = self.readings[0].weights["k"].shape[0]
        self.graph = Graph(trunk.n_layers, trunk.n_heads, kv_heads, self._parallel())

    @property
    def additive(self) -> bool:
        """Whether heads add to the residual stream one by one; with a norm after attention they do not."""
        return all(scale is not None for scale in self.scales)

    def _width(self) -> int:
        return self.outputs[0].shape[-1]

    def _probe(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        value = torch.randn(1, 1, self._width(), generator=generator)
        return value.to(self.trunk.device, self.outputs[0].dtype)

    def _scale(self, layer: int) -> float | None:
        """What attention's output is multiplied with on its way into the stream; None where that is no number."""
        given = torch.cat([self._probe(), 3 * self._probe()])  # a norm would take the 3 away
        with torch.no_grad():
            ratio = self.written(layer, given, self.trunk.frame(1)) / given
        ratio, close = ratio.double(), 1e-4 if given.element_size() > 2 else 3e-2
        return ratio.mean().item() if ratio.std() < close * ratio.mean().abs() else None

    def _parallel(self) -> bool:
        """Whether the MLP reads the block's input instead of the stream after attention."""
        part, frame, seen = self.trunk.parts[0], self.trunk.frame(1), []
        handle = part.before_mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        given = self._probe()
        with torch.no_grad():
            self.trunk.step(0, given, frame, attention=given)
        handle.remove()
        return torch.equal(seen[-1], given)

    def written(self, layer: int, attention: Tensor, frame: Frame) -> Tensor:
        """What the block adds to the stream for an output of its attention, [row, pos, d_model]."""
        zero = torch.zeros_like(attention)
        return self.trunk.step(layer, zero, frame, attention=attention, mlp=zero)

    def attention_written(self, recorded: Recording, layer: int) -> Tensor:
        """What a recorded run's attention added to the stream, [row, pos, d_model]."""
        scale, attention = self.scales[layer], recorded.attention[layer]
        if scale is not None:
            return attention if scale == 1 else scale * attention
        return self.written(layer, attention, self.trunk.frame(attention.shape[1]))

    def heads_written(self, layer: int, z: Tensor, at: Tensor | None = None) -> Tensor:
        """What a change z [row, pos, head, d_head] of head outputs adds to the stream, [row, head, pos, d_model].

        Behind a norm this is its first-order share, at the attention output `at`.
        """
        direct = torch.einsum("bphe,hed->bhpd", z, self.outputs[layer])
        scale = self.scales[layer]
        if scale is not None:
            return direct if scale == 1 else scale * direct
        if at is None:
            raise TrunkError("a norm after attention mixes the heads, so they do not add to the stream one by one")
        frame = self.trunk.frame(at.shape[1])

        def pushed(tangent: Tensor) -> Tensor:
            return jvp(lambda value: self.written(layer, value, frame), (at,), (tangent,))[1]

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, at its first forward derivative
            return vmap(pushed, in_dims=1, out_dims=1)(direct)

    def differences(self, to: Recording, source: Recording, start: int = 0, at: list[Tensor] | None = None) -> Tensor:
        """What each writer adds more in one run than in another from `start` on, [row, writer, pos, d_model].

        `at`, [row, pos, d_model] a layer, is where heads behind a norm are linearised.
        """
        rows, length = to.tokens.shape
        shape = rows, len(self.graph.writers), length - start, self._width()
        found = at_least_single(to.inputs[0].new_empty(0)).new_empty(shape)
        found[:, 0] = (to.inputs[0] - source.inputs[0])[:, start:]
        for layer in range(self.trunk.n_layers):
            first = self.graph.writer(layer, 0)
            z = (to.z[layer] - source.z[layer])[:, start:]
            found[:, first : first + self.graph.heads] = self.heads_written(layer, z, None if at is None else at[layer])
            change = self._mlp_written(to, layer) - self._mlp_written(source, layer)
            found[:, self.graph.writer(layer)] = change[:, start:]
        return found

    def added(self, to: Recording, source: Recording, writer: int, start: int) -> Tensor:
        """What one writer adds more in one run than in another, exactly, [row, pos, d_model].

        Behind a norm: what the layer adds more when this head alone changes.
        """
        layer, head = self.graph.writer_cells[writer].tolist()
        if layer < 0:
            return (to.inputs[0] - source.inputs[0])[:, start:]
        if head < 0:
            return (self._mlp_written(to, layer) - self._mlp_written(source, layer))[:, start:]
        z = (to.z[layer][:, start:, head] - source.z[layer][:, start:, head]) @ self.outputs[layer][head]
        if self.scales[layer] is not None:
            return self.scales[layer] * z
        base, frame = source.attention[layer][:, start:], self.trunk.frame(z.shape[1])
        return self.written(layer, base + z, frame) - self.written(layer, base, frame)

    def attention_along(self, hidden: Tensor, recorded: Recording, start: int) -> list[Tensor]:
        """What each layer's attention returns in a run from `hidden` [row, pos, d_model] on, as in `slopes`."""
        frame, found = self.trunk.frame(recorded.tokens.shape[1], start), []
        for index, part in enumerate(self.trunk.parts):
            handle = part.attention.register_forward_hook(lambda module, args, out: found.append(out[0]))
            try:
                hidden = self.trunk.step(index, hidden, frame, act=self.trunk.resume(recorded, index, frame))
            finally:
                handle.remove()
        return found

    def _mlp_written(self, recorded: Recording, layer: int) -> Tensor:
        return recorded.inputs[layer + 1] - recorded.inputs[layer] - self.attention_written(recorded, layer)

    def slopes(
        self,
        metric: Metric,
        hidden: Tensor,
        recorded: Recording,
        start: int = 0,
        *,
        layer: int = 0,
        attention: Tensor | None = None,
        mlp: Tensor | None = None,
    ) -> Iterator[tuple[slice, int, Tensor]]:
        """How the metric changes with each reader's input, layer by layer from the output backwards.

        The run starts at `layer` from `hidden` [row, pos, d_model], the positions from `start` on of a run that is the
        recorded one before; `attention` and `mlp` stand for what these modules of that layer return. Yields (readers,
        how many writers stand before them, gradients [row, reader, pos, d_model]).
        """
        frame, taken = self.trunk.frame(recorded.tokens.shape[1], start), []
        with torch.enable_grad():
            value = hidden.detach().clone().requires_grad_()
            for index in range(layer, self.trunk.n_layers):
                given = {"attention": attention, "mlp": mlp} if index == layer else {}
                act = self.trunk.resume(recorded, index, frame)
                with self._taking(index) as found:
                    value = self.trunk.step(index, value, frame, act=act, **given)
                taken.append((index, found))
            wanted = [value, *(t for _, found in taken for t in (*found["outputs"], *found["mlp"]))]
            grads = list(torch.autograd.grad(metric(value[:, -1]).sum(), wanted, allow_unused=True))
        yield slice(len(self.graph.readers) - 1, None), self.graph.before(0, "logits"), grads.pop(0)[:, None]
        with torch.no_grad():
            for index, found in reversed(taken):
                mlp_grads = [grads.pop() for _ in found["mlp"]]
                outputs = [grads.pop() for _ in found["outputs"]][::-1]
                yield from self._pulled(index, found, outputs, mlp_grads)

    def patched(
        self, layer: int, part: str, heads: list[int], change: Tensor, recorded: Recording, start: int
    ) -> Tensor:
        """The last residual [edge x row, d_model] of the recorded run with one reader's input changed, exactly.

        Args:
            layer: of the readers (any, for the logits).
            part: q, k, v, mlp or logits.
            heads: the reader of each edge (key-value heads for k and v; ignored for mlp and logits).
            change: what is added to that reader's input from `start` on, [edge, row, pos, d_model].
            recorded: the run that is changed.
            start: first position that is changed.
        """
        times = len(change)
        change = change.flatten(0, 1)
        if part == "logits":
            return recorded.inputs[-1][:, -1].repeat(times, 1) + change[:, -1]
        frame = self.trunk.frame(recorded.tokens.shape[1], start)
        hidden = recorded.inputs[layer][:, start:].repeat(times, 1, 1)
        if part == "mlp":
            return self._with_mlp(layer, hidden, change, recorded, start, frame)
        with torch.no_grad():
            outputs = self._with_one(layer, part, heads, hidden, change)
            with self.readings[layer].giving(outputs):
                heard = self.trunk.seen(layer, hidden, frame)
        return self.trunk.run_on(layer, hidden, recorded, start, acts={layer: lambda hidden: lambda *live: heard})

    def _with_one(self, layer: int, part: str, heads: list[int], hidden: Tensor, change: Tensor) -> list[Tensor]:
        """What the projections give when, in its share of the rows, one head's input is changed."""
        reading, norm, rows = self.readings[layer], self.trunk.parts[layer].norm, len(hidden) // len(heads)
        normed, moved = norm(hidden), norm(hidden + change)
        outputs = [module(normed) for module in reading.modules]
        index, columns = reading.columns[part]
        for edge, head in enumerate(heads):
            some = slice(edge * rows, (edge + 1) * rows)
            outputs[index][some][..., columns[head]] = (
                moved[some] @ reading.weights[part][head].T + reading.biases[part][head]
            )
        return outputs

    def _with_mlp(
        self, layer: int, hidden: Tensor, change: Tensor, recorded: Recording, start: int, frame: Frame
    ) -> Tensor:
        part, times = self.trunk.parts[layer], len(hidden) // len(recorded.tokens)
        read = hidden
        if not self.graph.parallel:
            read = hidden + self.attention_written(recorded, layer)[:, start:].repeat(times, 1, 1)
        attention = recorded.attention[layer][:, start:].repeat(times, 1, 1)
        with torch.no_grad():
            mlp = part.run_mlp(read + change)
            hidden = self.trunk.step(layer, hidden, frame, attention=attention, mlp=mlp)
        if layer == self.trunk.n_layers - 1:
            return hidden[:, -1]
        return self.trunk.run_on(layer + 1, hidden, recorded, start)

    @contextlib.contextmanager
    def _taking(self, layer: int) -> Iterator[dict[str, list[Tensor]]]:
        """Within the block, what the projections give, what the MLP is given, and what the norms before them are."""
        part, reading = self.trunk.parts[layer], self.readings[layer]
        found: dict[str, list[Tensor]] = {"outputs": [], "mlp": [], "norm": [], "mlp_norm": []}

        def before(name: str):
            return lambda module, args: found[name].append(args[0])

        def own(module: Any, args: tuple) -> tuple:
            found["mlp"].append(args[0].clone())  # its own copy, where attention reads the same normed stream
            return found["mlp"][-1], *args[1:]

        handles = [m.register_forward_hook(lambda m, a, out: found["outputs"].append(out)) for m in reading.modules]
        handles.append(part.mlp.register_forward_pre_hook(own))
        handles.append(part.norm.register_forward_pre_hook(before("norm")))
        if part.mlp_norm is not None:
            handles.append(part.mlp_norm.register_forward_pre_hook(before("mlp_norm")))
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def _pulled(
        self, layer: int, found: dict, outputs: Sequence[Tensor | None], mlp: Sequence[Tensor | None]
    ) -> Iterator[tuple[slice, int, Tensor]]:
        """Gradients at the projections and the MLP, pulled back through weights and norms to the stream."""
        part, reading, graph = self.trunk.parts[layer], self.readings[layer], self.graph
        if mlp and mlp[0] is not None:
            at = found["mlp_norm"] or found["norm"]
            pulled = through(part.before_mlp, at[0].detach(), mlp[0][:, None])
            yield graph.readers_of(layer, "mlp"), graph.before(layer, "mlp"), pulled
        if not outputs or all(grad is None for grad in outputs):
            return
        whole = [torch.zeros_like(o) if g is None else g for g, o in zip(outputs, found["outputs"], strict=True)]
        for name, grad in reading.split(whole).items():
            normed = torch.einsum("bphe,hed->bhpd", grad, reading.weights[name])
            pulled = through(part.norm, found["norm"][0].detach(), normed)
            yield graph.readers_of(layer, name), graph.before(layer, name), pulled

    def read(self, layer: int, inputs: dict[str, Tensor]) -> list[Tensor]:
        """What the projections give when each reader has an input of its own, [row, reader, pos, d_model] a part."""
        norm = self.trunk.parts[layer].norm
        return self.readings[layer].joined({part: norm(value) for part, value in inputs.items()})

    def attend(self, layer: int, outputs: list[Tensor], recorded: Recording, frame: Frame) -> Tensor:
        """Head outputs z [row, pos, head, d_head] of a block whose projections give `outputs`."""
        part, kept = self.trunk.parts[layer], []
        hidden = outputs[0].new_zeros(*outputs[0].shape[:2], self._width())
        hook = part.output.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
        try:
            with self.readings[layer].giving(outputs):
                self.trunk.step(layer, hidden, frame, mlp=hidden, act=self.trunk.resume(recorded, layer, frame))
        finally:
            hook.remove()
        return kept[0].unflatten(-1, (self.graph.heads, -1))

    def contributions(self, recorded: Recording, start: int = 0) -> Tensor:
        """What each writer adds to the stream in a run, [row, writer, pos, d_model]; attention's bias aside."""
        rows, length = recorded.tokens.shape
        found = recorded.inputs[0].new_empty(rows, len(self.graph.writers), length - start, self._width())
        found[:, 0] = recorded.inputs[0][:, start:]
        for layer in range(self.trunk.n_layers):
            first = self.graph.writer(layer, 0)
            found[:, first : first + self.graph.heads] = self.heads_written(layer, recorded.z[layer][:, start:])
            found[:, self.graph.writer(layer)] = self._mlp_written(recorded, layer)[:, start:]
        return found

    def keeping(self, kept: Tensor, recorded: Recording, other: Tensor, start: int) -> Tensor:
        """The last residual [row, d_model] of a run in which every edge outside a circuit carries something else.

        Args:
            kept: the circuit, bool [reader, writer].
            recorded: the run itself, read before `start`.
            other: what each writer adds on the edges outside, [row, writer, pos, d_model] from `start` on.
            start: first position that may differ.
        """
        graph, frame = self.graph, self.trunk.frame(recorded.tokens.shape[1], start)
        drop = (torch.as_tensor(graph.valid, device=kept.device) & ~kept).to(other.dtype)
        stream, gone = recorded.inputs[0][:, start:], torch.empty_like(other)

        def reads(readers: slice, before: int) -> Tensor:
            return stream[:, None] - torch.einsum("rw,bwpd->brpd", drop[readers, :before], gone[:, :before])

        with torch.no_grad():
            gone[:, 0] = stream - other[:, 0]
            for layer in range(graph.layers):
                part, first, last = self.trunk.parts[layer], graph.writer(layer, 0), graph.writer(layer)
                inputs = {name: reads(graph.readers_of(layer, name), graph.before(layer, name)) for name in PARTS}
                z = self.attend(layer, self.read(layer, inputs), recorded, frame)
                gone[:, first:last] = self.heads_written(layer, z) - other[:, first:last]
                attention, before = self.trunk.out(layer, z), stream
                after = before + self.scales[layer] * attention  # type: ignore[operator]
                stream = before if graph.parallel else after
                read = reads(graph.readers_of(layer, "mlp"), graph.before(layer, "mlp"))[:, 0]
                stream = self.trunk.step(layer, before, frame, attention=attention, mlp=part.run_mlp(read))
                gone[:, last] = stream - after - other[:, last]
            return reads(slice(len(graph.readers) - 1, None), len(graph.writers))[:, 0, -1]
