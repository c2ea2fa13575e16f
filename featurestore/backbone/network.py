"""A frozen network and its preprocessing: its layers, their identity, and what they compute."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from featurestore.backbone import cost, engines, forward, identity, reduction
from featurestore.backbone.copying import at_rest, clone, recast, seeded
from featurestore.backbone.cost import LayerInfo
from featurestore.backbone.custom import is_keras
from featurestore.backbone.engines import Computing, EngineError
from featurestore.backbone.forward import Compute, Forward, Pass
from featurestore.backbone.graph import Graph, Node, at_inference
from featurestore.backbone.preprocessing import Preprocessing
from featurestore.backbone.refs import LayerRef
from featurestore.backbone.resizing import compiled_resize
from featurestore.digests import digest_fields
from featurestore.errors import BackboneError, FeatureStoreWarning, UnknownLayerError, nearest
from featurestore.table import Table


class Network:
    """A graph of layers behind its preprocessing: a :class:`Backbone`, however it was made.

    Parameters
    ----------
    name : str
    graph : Graph
    preprocessing : Preprocessing
    computing : Computing, optional
    """

    def __init__(
        self,
        name: str,
        graph: Graph,
        preprocessing: Preprocessing,
        computing: Computing | None = None,
    ) -> None:
        forward.require_tensorflow()
        self.name = name
        self.preprocessing = preprocessing
        self.computing = computing or Computing()
        self._graph = graph
        # The graph, and its copies in other precisions once they are used.
        self._graphs = {"float32": graph}
        # The user's code may change later, which is refused then.
        self._graph_digests = identity.graph_digests(graph)
        self._shapes = graph.shapes(preprocessing.input_size)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width that the first layer sees."""
        return self.preprocessing.input_size

    @property
    def operations(self) -> list[Any]:
        """The layers and operations of the network, in order."""
        return [node.operation for node in self._graph.nodes[1:]]

    @cached_property
    def layer_names(self) -> list[str]:
        """Names of the layers where you can cut, in order."""
        return [self._graph.nodes[number].name for number in self._cuts]

    def layers(self) -> Table[LayerInfo]:
        """Describe every layer where you can cut, in order."""
        return cost.table(self._graph, self._shapes, self._cuts)

    def layers_before(self, layer: str) -> list[str]:
        """Return the layers that a layer is computed from and where you can cut, in order."""
        needed = set(self._graph.ancestors([self._number(layer)])) - {self._number(layer)}
        return [self._graph.nodes[number].name for number in self._cuts if number in needed]

    def shape(self, ref: LayerRef | str) -> tuple[int, ...]:
        """Return the shape of one sample's activation at a ref, reduced if the ref says so."""
        ref = LayerRef.parse(ref)
        number = self._number(ref.layer)
        shape = self._shapes[number][0][1:]
        if ref.reduction is None:
            return shape
        return reduction.reduced_shape(ref, self._graph, self._graph.nodes[number], shape)

    def prefix_digest(self, layer: str) -> str:
        """Return the digest of everything that determines the activation of a layer."""
        return digest_fields(self.prefix_fields(layer))

    def prefix_fields(self, layer: str) -> dict[str, Any]:
        """Return the fields behind a prefix digest, which explain a miss."""
        identity.refuse_other_defaults()
        number = self._number(layer)
        return {
            "graph": self._graph_digests[number],
            "weights": self._weight_digests[number],
            "preprocessing": self.preprocessing.fields(),
            "input_size": list(self.input_size),
            "precision": self.precision(layer),
            **self.computing.fields(),
        }

    def weights_changed(self) -> bool:
        """Whether a weight has changed since its digest was computed."""
        return self._weight_digests != identity.weight_digests(self._graph)

    def precision(self, layer: str) -> str:
        """Return the types that the network computes with up to a layer, joined by ``+``."""
        if self.computing.precision != "float32":
            return self.computing.precision
        return self._precisions[self._number(layer)]

    @cached_property
    def resize(self) -> Callable[[np.ndarray], np.ndarray]:
        """Function that resizes one decoded image, to the same pixels as the layer in a cut model.

        It takes and returns uint8 (height, width, channel=3); an image of the input size is
        returned without a copy. Many threads may call it.
        """
        return compiled_resize(self.preprocessing.resizing())

    def forward(self, refs: Sequence[LayerRef | str]) -> Pass:
        """Compile one pass that gives the activations at several refs.

        Returns
        -------
        Pass
            From images, uint8 (batch, height, width, channel=3) of the input size, to a float32
            array (batch, …) for each ref. Any batch size. Compile once, call often.

        Raises
        ------
        BackboneError
            If a weight on the way is NaN.
        """
        identity.refuse_nan(self._graph, self._graph.ancestors(self._numbers(refs)))
        if reason := engines.slower(self.computing.precision):
            warnings.warn(
                f"{self.computing.precision} is slower than float32 here: {reason}",
                FeatureStoreWarning,
                stacklevel=2,
            )
        return self._compiled(refs)

    def forward_with(
        self, engine: str, refs: Sequence[LayerRef | str], precision: str | None = None
    ) -> Pass:
        """Compile the pass of :meth:`forward` with one engine, or in another precision too."""
        precision = precision or self.computing.precision
        computing = Computing.of({"engine": engine, "precision": precision})
        return self._compiled(refs, computing=computing)

    def derivable_from(self, ref: LayerRef | str) -> list[str]:
        """Return the layers whose whole activation is enough to compute a ref, nearest first.

        Every path from the image to the ref leads through them: the layer itself if the ref reduces
        it, and layers before it. Not those with a mask, which stored features do not have, nor
        those of integers, which these round.
        """
        ref = LayerRef.parse(ref)
        self.shape(ref)
        end = self._number(ref.layer)
        through = self._graph.bottlenecks([end])
        through[end] = ref.reduction is not None
        return [
            self._graph.nodes[number].name
            for number in reversed(self._cuts)
            if through[number] and self._is_plain(number)
        ]

    def tail(self, source: str, refs: Sequence[LayerRef | str]) -> Pass:
        """Compile the pass from the stored activation of a layer to several refs.

        Parameters
        ----------
        source : str
            One of :meth:`derivable_from` of each ref.
        refs : sequence of LayerRef or str

        Returns
        -------
        Pass
            From whole activations of ``source``, float16 or float32 (batch, …), to a float32 array
            (batch, …) for each ref. Any batch size.

        Raises
        ------
        BackboneError
            If a ref needs more than ``source``, or a weight on the way is NaN.
        """
        start = self._start(source, refs)
        identity.refuse_nan(self._graph, self._tail_nodes(refs, start))
        return self._compiled(refs, source)

    def flops(self, refs: Sequence[LayerRef | str], source: str | None = None) -> int:
        """Return the floating-point operations of one pass to several refs, for one image.

        The pass starts at the image, or at the stored activation of a layer that all refs are
        derivable from.
        """
        start = 0 if source is None else self._start(source, refs)
        return sum(self._flops[number] for number in self._tail_nodes(refs, start))

    def reference(self, refs: Sequence[LayerRef | str]) -> Forward:
        """Return the reference for :meth:`forward`: each layer by itself, on the CPU. Slow.

        Parameters and the callable that is returned are those of :meth:`forward`.
        """
        return forward.plain(self.computation(refs))

    def averaged(self, ref: LayerRef) -> LayerRef | None:
        """Return the whole activation that a ref is the mean of, per channel; None if it is not."""
        if ref.reduction is not None:
            return LayerRef(ref.layer) if ref.reduction == "avg" else None
        node = self._graph.nodes[self._number(ref.layer)]
        kind, layout = node.kind, getattr(node.operation, "data_format", "channels_last")
        if not kind.startswith("GlobalAverage") or layout != "channels_last":
            return None
        before = self._graph.nodes[node.inputs[0][0]]
        return LayerRef(before.name) if before.name in self.layer_names else None

    def computation(
        self,
        refs: Sequence[LayerRef | str],
        move: Callable[[Any], Any] | None = None,
        source: str | None = None,
        precision: str = "float32",
    ) -> Compute:
        """Return the function from a uint8 tensor to the activations at several refs.

        ``move`` is applied to the network's input and to every layer's output. With ``source``, the
        function takes stored activations of that layer. ``precision`` is that of the layers.
        """
        import keras

        if precision not in self._graphs:
            self._graphs[precision] = recast(self._graph, self._shapes[0][0], precision)
        graph = self._graphs[precision]
        parsed = [LayerRef.parse(ref) for ref in refs]
        for ref in parsed:
            self.shape(ref)
        numbers = self._numbers(parsed)
        reductions = [self._reduction(ref) for ref in parsed]
        start = 0 if source is None else self._start(source, refs)
        # What the layers behind the source see when the whole network computes.
        native = graph.nodes[start].outputs[0].dtype

        def moved(node: Node) -> Callable:
            call = self._call(node)
            return lambda *args, **kwargs: keras.tree.map_structure(move, call(*args, **kwargs))

        def compute(taken: Any) -> list[Any]:
            first = keras.ops.cast(taken, native) if start else self.preprocessing.scale(taken)
            if move is None:
                outputs = graph.run(first, numbers, self._call, start)
            else:
                outputs = graph.run(move(first), numbers, moved, start)
            return [
                reduction.reduce(each[0], reduce)
                for each, reduce in zip(outputs, reductions, strict=True)
            ]

        return compute

    def cut(self, ref: LayerRef | str) -> Any:
        """Build a new plain model from raw images to the activation at a ref.

        Returns
        -------
        keras.Model
            Flat: ``image``, uint8 (batch, height, width, channel=3) of any size, ``resizing``,
            ``scaling``, copies of the layers under their canonical names, and ``reduction``
            if the ref has one or the activation a mask, which stored features do not have.
            Training it leaves the backbone as it is.
        """
        import keras

        ref = LayerRef.parse(ref)
        self.shape(ref)
        with seeded():
            image = keras.Input((None, None, 3), dtype="uint8", name="image")
            resized = at_rest(self.preprocessing.resizing())(image)
            scaled = self.preprocessing.scale(resized)
            number = self._number(ref.layer)
            output = clone(self._graph, scaled, [number], fixed=True)[0]
            reducing = self._reduction(ref)
            if reducing is not None:
                output = reducing(output)
            elif reduction.is_masked(self._graph.nodes[number]):
                output = reduction.unmasked(output)
            name = "".join(each if each.isalnum() or each in "-_." else "_" for each in self.name)
            return keras.Model(image, output, name=name)

    def _compiled(
        self,
        refs: Sequence[LayerRef | str],
        source: str | None = None,
        computing: Computing | None = None,
    ) -> Pass:
        """Compile a pass with the fastest engine that can compute it."""
        identity.refuse_changes(self._graph, self._graph_digests)
        number, dtype = (0, "uint8") if source is None else (self._number(source), "float32")
        shape = self._shapes[number][0][1:]
        computing = computing or self.computing
        names = computing.engines()
        own = {self._precisions[each] for each in self._numbers(refs)} - {"float32"}
        if names[0] == "openvino" and not (own and "tensorflow" in names):
            try:
                if own:
                    raise EngineError(f"its layers compute in {', '.join(sorted(own))}")
                # OpenVINO itself lowers the precision.
                compute = self.computation(refs, source=source)
                return engines.with_openvino(compute, shape, dtype, computing.precision)
            except EngineError as error:
                if len(names) == 1:
                    raise BackboneError(
                        f"the engine openvino cannot compute {self.name}: {error}; compute with"
                        " --engine tensorflow (in Python: engine='tensorflow')"
                    ) from error
                warnings.warn(
                    f"TensorFlow computes, because OpenVINO cannot compute {self.name}: {error}",
                    FeatureStoreWarning,
                    stacklevel=2,
                )
        compute = self.computation(refs, source=source, precision=computing.precision)
        return forward.compiled(compute, shape, dtype)

    def _call(self, node: Node) -> Callable:
        """Return what to call for a node: not a resize that keeps the size, as promoted models do.

        It changes no pixel, and OpenVINO has no antialiased resize.
        """
        import keras

        if node.kind == "Resizing" and is_keras(type(node.operation)):
            number = self._graph.by_name[node.name]
            ((parent, output),) = node.inputs
            if self._shapes[parent][output] == self._shapes[number][0]:
                return lambda image: keras.ops.cast(image, node.outputs[0].dtype)
        return at_inference(node)

    @cached_property
    def _weight_digests(self) -> list[str]:
        return identity.weight_digests(self._graph)

    @cached_property
    def _precisions(self) -> list[str]:
        return identity.precisions(self._graph)

    @cached_property
    def _flops(self) -> list[int]:
        return cost.flops(self._graph, self._shapes)

    @cached_property
    def _cuts(self) -> list[int]:
        return [
            number
            for number in range(1, len(self._graph.nodes))
            if cost.why_no_cut(self._shapes[number]) is None
        ]

    def _number(self, layer: str) -> int:
        number = self._graph.by_name.get(layer)
        if number is None:
            own = self._graph.own_names.get(layer)
            hint = (
                f"the model's own layer of that name is called {own!r} here"
                if own
                else nearest(layer, self.layer_names)
            )
            raise UnknownLayerError(f"no layer {layer!r} in {self.name}; {hint}")
        reason = cost.why_no_cut(self._shapes[number])
        if reason is not None:
            raise BackboneError(f"cannot cut {self.name} at {layer!r}: it {reason}")
        return number

    def _numbers(self, refs: Sequence[LayerRef | str]) -> list[int]:
        return [self._number(LayerRef.parse(ref).layer) for ref in refs]

    def _start(self, source: str, refs: Sequence[LayerRef | str]) -> int:
        """Return the node number of a layer that refs are to be derived from."""
        for ref in refs:
            known = self.derivable_from(ref)
            if source not in known:
                raise BackboneError(
                    f"{str(ref)!r} cannot be derived from {source!r}; "
                    + (f"expected {', '.join(known[:4])}" if known else "it needs the image")
                )
        return self._number(source)

    def _tail_nodes(self, refs: Sequence[LayerRef | str], start: int) -> list[int]:
        return [each for each in self._graph.ancestors(self._numbers(refs), start) if each != start]

    def _is_plain(self, number: int) -> bool:
        """Whether a node's activation can be stored and reused: floats without a mask."""
        node = self._graph.nodes[number]
        return "float" in node.outputs[0].dtype and not reduction.is_masked(node)

    def _reduction(self, ref: LayerRef) -> Any:
        """Return the layer that reduces a ref's activation, or None."""
        return reduction.reduction(ref, len(self._shapes[self._number(ref.layer)][0]))
