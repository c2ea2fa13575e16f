"""Where a network can be cut, what an activation there has the shape of, and what leads to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from featurestore.backbone import cost
from featurestore.backbone.graph import Graph
from featurestore.backbone.refs import LayerRef
from featurestore.errors import BackboneError, UnknownLayerError, nearest


class Cuts:
    """The layers of a network where it can be cut.

    Parameters
    ----------
    name : str
        The network's, for messages.
    graph : Graph
        Of the images' size.
    special_tokens : int or None
        Tokens at the beginning of a sequence that are not patches; None if unknown.
    """

    def __init__(self, name: str, graph: Graph, special_tokens: int | None = None) -> None:
        self._name, self._graph = name, graph
        self.special_tokens = special_tokens

    @cached_property
    def names(self) -> list[str]:
        """Names of the layers, in order."""
        return [self._graph.nodes[number].name for number in self._graph.cuts]

    def number(self, layer: str) -> int:
        """Return the node number of a layer.

        Raises
        ------
        UnknownLayerError
            If there is no such layer.
        BackboneError
            If you cannot cut there.
        """
        number = self._graph.by_name.get(layer)
        if number is None:
            raise UnknownLayerError(
                f"no layer {layer!r} in {self._name}; {nearest(layer, self.names)}"
            )
        node = self._graph.nodes[number]
        if not node.is_cut:
            shapes = ", ".join(str(tuple(output.shape)) for output in node.outputs)
            raise BackboneError(
                f"cannot cut {self._name} at {layer!r}, which gives {shapes}",
                "one output: (None, height, width, channel), (None, token, channel) or"
                " (None, channel)",
            )
        return number

    def shape(self, ref: LayerRef | str) -> tuple[int, ...]:
        """Return the shape of one sample's activation at a ref, reduced if the ref says so."""
        ref = LayerRef.parse(ref)
        whole = self._graph.nodes[self.number(ref.layer)].outputs[0].shape[1:]
        return ref.shape(whole, self.special_tokens)

    def before(self, layer: str) -> list[str]:
        """Return the layers that a layer is computed from and where you can cut, in order."""
        number = self.number(layer)
        needed = set(self._graph.ancestors([number])) - {number}
        return [self._graph.nodes[number].name for number in self._graph.cuts if number in needed]

    def derivable_from(self, ref: LayerRef | str) -> list[str]:
        """Return the layers whose whole activation is enough to compute a ref, nearest first.

        Every path from the image to the ref leads through them: the layer itself if the ref reduces
        it, and layers before it. Not those of integers, which stored features round.
        """
        ref = LayerRef.parse(ref)
        self.shape(ref)
        end, nodes = self.number(ref.layer), self._graph.nodes
        through = self._graph.bottlenecks([end])
        through[end] = ref.reduction is not None
        return [
            nodes[number].name
            for number in reversed(self._graph.cuts)
            if through[number] and "float" in nodes[number].outputs[0].dtype
        ]

    def start(self, refs: Sequence[LayerRef | str], source: str | None) -> int:
        """Return the number of the node that refs are computed from: a layer's, or 0 for the image.

        Raises
        ------
        BackboneError
            If a ref is not derivable from the layer ``source``.
        """
        if source is None:
            return 0
        for ref in refs:
            names = self.derivable_from(ref)
            if source not in names:
                raise BackboneError(
                    f"{str(ref)!r} cannot be derived from {source!r}",
                    ", ".join(names[:4]) or "the image",
                )
        return self.number(source)

    def flops(self, refs: Sequence[LayerRef | str], source: str | None = None) -> int:
        """Return the floating-point operations to compute several refs, for one image.

        They start at the image, or at the stored activation of a layer that all refs are derivable
        from.
        """
        ends = [self.number(LayerRef.parse(ref).layer) for ref in refs]
        start = self.start(refs, source)
        numbers = self._graph.ancestors(ends, start)
        return sum(self._flops[number] for number in numbers if number != start)

    @cached_property
    def _flops(self) -> list[int]:
        return cost.flops(self._graph)
