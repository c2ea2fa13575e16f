"""The backbone: a frozen Keras model with its own preprocessing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.backbone import (
    agreement,
    forward,
    identity,
    measures,
    recognition,
    reduction,
    sources,
)
from featurestore.backbone.code import is_keras
from featurestore.backbone.families import application, known_application
from featurestore.backbone.forward import Compute
from featurestore.backbone.graph import Graph, Node, at_rest, clone, flatten
from featurestore.backbone.measures import LayerInfo
from featurestore.backbone.preprocessing import Preprocessing, Size, size_pair
from featurestore.backbone.refs import LayerRef
from featurestore.backbone.rounding import last_bit
from featurestore.digests import digest_fields
from featurestore.errors import BackboneError, FeatureStoreError, UnknownLayerError, nearest


class Backbone:
    """A frozen Keras model with its own preprocessing. Make one with a ``from_…`` method.

    Attributes
    ----------
    name : str
        In feature keys: the application's or the file's.
    spec : dict
        JSON values that :meth:`from_spec` builds the same backbone from.
    preprocessing : Preprocessing
        How a decoded image becomes what the first layer takes.
    """

    def __init__(
        self, name: str, graph: Graph, preprocessing: Preprocessing, spec: dict[str, Any]
    ) -> None:
        self.name = name
        self.preprocessing = preprocessing
        self.spec = spec
        self._graph = graph
        # At once: code of the user's may be another by the time that a key is asked for.
        self._graph_digests = identity.graph_digests(graph)
        self._shapes = graph.shapes(preprocessing.input_size)
        self._resize: Callable[[np.ndarray], np.ndarray] | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        height, width = self.input_size
        return f"Backbone({self.name!r}, {height}×{width}, {len(self.layer_names)} layers)"

    # ------------------------------------------------------------------ making one

    @classmethod
    def from_application(
        cls,
        name: str,
        weights: str | Path = "imagenet",
        input_size: Size | None = None,
        *,
        include_top: bool = False,
        resize: str = "stretch",
        interpolation: str = "bilinear",
    ) -> Backbone:
        """Build a network of ``keras.applications``.

        Parameters
        ----------
        name : str
            The constructor's name, in any case.
        weights : str or path
            ``imagenet`` (downloaded once by Keras), ``random`` (the same ones every time), or a
            weights file.
        input_size : int or (int, int), optional
            Side, or height and width; by default what the network was trained on.
        include_top : bool
            Keep the ImageNet classifier; with ``imagenet`` weights it fixes the input size.
        resize, interpolation : str
            See :class:`Preprocessing`.

        Raises
        ------
        BackboneError
            No such network, no such weights, or weights of another network.
        """
        network = known_application(name)
        size = size_pair(input_size or network.size)
        preprocessing = Preprocessing(size, resize, interpolation, network.scaling)
        chosen = str(weights)
        if chosen not in ("imagenet", "random"):
            chosen = str(Path(weights).absolute())
        spec = {
            "source": "application",
            "name": network.name,
            "weights": chosen,
            "input_size": list(size),
            "include_top": include_top,
            "resize": resize,
            "interpolation": interpolation,
        }
        model = sources.build_application(network, chosen, size, include_top)
        return cls(network.name, flatten(model), preprocessing, spec)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        weights: str | Path | None = None,
        input_size: Size | None = None,
        scaling: str | None = None,
        resize: str = "stretch",
        interpolation: str = "bilinear",
        name: str | None = None,
    ) -> Backbone:
        """Load a functional ``.keras`` or ``.h5`` model, in safe mode.

        Parameters
        ----------
        path : str or path
            The model file.
        weights : str or path, optional
            A weights file to load over the model's own.
        input_size : int or (int, int), optional
            Needed where the model leaves it open; must match where it does not.
        scaling : {"none", "unit", "tf", "torch", "caffe"}, optional
            Needed where the model does not show it, by scaling in its graph or by being a
            network of ``keras.applications``.
        name : str, optional
            By default the file's, without its ending.
        """
        if str(weights) in ("imagenet", "random"):
            raise BackboneError(
                f"{str(path)!r} is a model file, which has its own weights: found --weights"
                f" {weights}, expected none or a weights file"
            )
        model = sources.load_model(path)
        if weights is not None:
            sources.load_weights(model, weights)
        graph, found = flatten(model), Path(path)
        preprocessing = recognition.settle(
            graph, model.name, input_size, scaling, resize, interpolation
        )
        spec = {
            "source": "file",
            "path": str(found.absolute()),
            "weights": None if weights is None else str(Path(weights).absolute()),
            "input_size": list(preprocessing.input_size),
            "scaling": preprocessing.scaling,
            "resize": resize,
            "interpolation": interpolation,
            "name": name or found.stem,
        }
        return cls(name or found.stem, graph, preprocessing, spec)

    @classmethod
    def from_model(
        cls,
        model: Any,
        *,
        name: str,
        scaling: str | None = None,
        input_size: Size | None = None,
        resize: str = "stretch",
        interpolation: str = "bilinear",
    ) -> Backbone:
        """Take a copy of a functional Keras model, as it is now.

        The model is not changed, and training it later does not change the backbone. Parameters
        are those of :meth:`from_file`.
        """
        given = flatten(model)
        preprocessing = recognition.settle(
            given, model.name, input_size, scaling, resize, interpolation
        )
        spec = {
            "source": "model",
            "input_size": list(preprocessing.input_size),
            "scaling": preprocessing.scaling,
            "resize": resize,
            "interpolation": interpolation,
            "name": name,
        }
        backbone = cls(name, sources.copied(given), preprocessing, spec)
        backbone._require_like(given)
        return backbone

    @classmethod
    def pixels(
        cls, input_size: Size = 32, *, resize: str = "stretch", interpolation: str = "bilinear"
    ) -> Backbone:
        """Return the backbone without a network: its one layer ``pixels`` gives 0 to 1.

        The baseline that cached features have to beat goes the same way as they do.
        """
        import keras

        size = size_pair(input_size)
        image = keras.Input((*size, 3), name="image")
        layer = keras.layers.Rescaling(1 / 255.0, name="pixels", dtype="float32")
        model = keras.Model(image, layer(image), name="pixels")
        spec = {
            "source": "pixels",
            "input_size": list(size),
            "resize": resize,
            "interpolation": interpolation,
        }
        return cls("pixels", flatten(model), Preprocessing(size, resize, interpolation), spec)

    @classmethod
    def open(
        cls,
        model: str | Path,
        *,
        weights: str | Path | None = None,
        input_size: Size | None = None,
        scaling: str | None = None,
        resize: str = "stretch",
        interpolation: str = "bilinear",
    ) -> Backbone:
        """Make a backbone of what the command line takes as MODEL.

        Parameters
        ----------
        model : str or path
            A ``keras.applications`` name in any case, a ``.keras`` or ``.h5`` file, or ``pixels``.
        """
        options: dict[str, Any] = {"resize": resize, "interpolation": interpolation}
        text = str(model)
        if text.casefold() == "pixels":
            return cls.pixels(input_size or 32, **options)
        if application(text) is None and (Path(text).is_file() or Path(text).suffix):
            return cls.from_file(
                text, weights=weights, input_size=input_size, scaling=scaling, **options
            )
        network = known_application(text)
        if scaling not in (None, network.scaling):
            raise BackboneError(
                f"{network.constructor} has scaling {network.scaling!r}; found --scaling"
                f" {scaling!r}, which is for model files"
            )
        return cls.from_application(text, weights or "imagenet", input_size, **options)

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Backbone:
        """Build the backbone that a ``spec`` describes."""
        makers: dict[str, Callable[..., Backbone]] = {
            "application": cls.from_application,
            "file": lambda path, **rest: cls.from_file(path, **rest),
            "pixels": cls.pixels,
        }
        try:
            options = {key: value for key, value in spec.items() if key != "source"}
            if options.get("input_size") is not None:
                options["input_size"] = size_pair(tuple(options["input_size"]))
            if spec["source"] in makers:
                return makers[spec["source"]](**options)
        except FeatureStoreError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # not one of ours
            raise BackboneError(f"no backbone can be built from {spec}: {error!r}") from error
        raise BackboneError(
            f"backbone {spec.get('name')!r} was made of a Keras model object, which only the"
            " caller has: pass Backbone.from_model(…), or save the model and use its file"
        )

    # ------------------------------------------------------------------ looking at it

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width that the first layer sees."""
        return self.preprocessing.input_size

    @cached_property
    def layer_names(self) -> list[str]:
        """Names of the layers where it can be cut, in order."""
        return [self._graph.nodes[number].name for number in self._cuts]

    def layers_before(self, layer: str) -> list[str]:
        """Return the layers that a layer is computed from where it can be cut too, in order."""
        needed = set(self._graph.ancestors([self._number(layer)])) - {self._number(layer)}
        return [self._graph.nodes[number].name for number in self._cuts if number in needed]

    def layers(self) -> list[LayerInfo]:
        """Return every place where it can be cut, in order."""
        return measures.table(self._graph, self._shapes, self._cuts)

    def shape(self, ref: LayerRef | str) -> tuple[int, ...]:
        """Return the shape of one sample's activation at a ref, reduced as it says."""
        ref = LayerRef.parse(ref)
        number = self._number(ref.layer)
        shape = self._shapes[number][0][1:]
        if ref.reduction is None:
            return shape
        return reduction.reduced_shape(ref, self._graph.nodes[number], shape, self._layouts[number])

    # ------------------------------------------------------------------ identity

    def prefix_digest(self, layer: str) -> str:
        """Return the digest of all that decides the activation of a layer."""
        return digest_fields(self.prefix_fields(layer))

    def prefix_fields(self, layer: str) -> dict[str, Any]:
        """Return the fields behind a prefix digest, to be kept so that a miss can be explained."""
        number = self._number(layer)
        return {
            "graph": self._graph_digests[number],
            "weights": self._weight_digests[number],
            "preprocessing": self.preprocessing.fields(),
            "input_size": list(self.input_size),
            "precision": self.precision(layer),
        }

    def precision(self, layer: str) -> str:
        """Return the types that are computed with up to a layer, joined by ``+``."""
        return self._precisions[self._number(layer)]

    # ------------------------------------------------------------------ computing

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Resize one decoded image, by the layer that a cut model carries too.

        Parameters
        ----------
        image : numpy.ndarray of uint8, (height, width, channel=3)

        Returns
        -------
        numpy.ndarray of uint8, (height, width, channel=3)
            Of the backbone's input size. May be called from many threads.
        """
        with self._lock:  # many threads may ask for the first image at once
            if self._resize is None:
                self._resize = forward.compiled_resize(self.preprocessing.resizing())
        return self._resize(image)

    def forward(self, refs: Sequence[LayerRef | str]) -> Callable[[np.ndarray], list[np.ndarray]]:
        """Compile one pass that gives the activations at several refs.

        Parameters
        ----------
        refs : sequence of LayerRef or str
            Where to cut; several reductions of one layer too.

        Returns
        -------
        callable
            From images, uint8 (batch, height, width, channel=3) of the input size, to a float32
            array (batch, …) for each ref. Any batch size. Compile once, call often.

        Raises
        ------
        BackboneError
            Where a weight that is needed is NaN.
        """
        parameters = measures.parameters(self._graph)
        needed = self._graph.ancestors(self._number(LayerRef.parse(ref).layer) for ref in refs)
        identity.refuse_nan(self._graph, needed)
        held = sum(parameters[number] for number in needed)
        return forward.compiled(
            self._computation(refs), (*self.input_size, 3), weight_bytes=4 * held
        )

    def reference(self, refs: Sequence[LayerRef | str]) -> Callable[[np.ndarray], list[np.ndarray]]:
        """Return what :meth:`forward` must equal: each layer by itself, on the CPU. Slow.

        Parameters and the callable that is returned are those of :meth:`forward`.
        """
        return forward.plain(self._computation(refs))

    def rounded(
        self, refs: Sequence[LayerRef | str], seed: int = 0
    ) -> Callable[[np.ndarray], list[np.ndarray]]:
        """Return :meth:`reference` with the last bit of each layer's result moved up or down.

        What this changes is what rounding may change: the same layers, computed in another order of
        sums, on another machine or in another batch, differ by about as much.

        Parameters
        ----------
        refs : sequence of LayerRef or str
            As for :meth:`forward`.
        seed : int
            Each gives another movement. Equal values move alike, and a row moves alike whatever
            else is in its batch.
        """
        return forward.plain(self._computation(refs, last_bit(seed)))

    def amplification(self, refs: Sequence[LayerRef | str], images: np.ndarray) -> list[float]:
        """Return how far :meth:`rounded` is from :meth:`reference` on a few images.

        Parameters
        ----------
        refs : sequence of LayerRef or str
        images : numpy.ndarray of uint8, (row, height, width, channel=3)

        Returns
        -------
        list of float
            For each ref, relative to its largest activation: 1e-6 or so for most networks in
            float32.
        """
        return agreement.amplification(self, refs, images)

    def check_forward(
        self, refs: Sequence[LayerRef | str], images: np.ndarray, activations: Sequence[np.ndarray]
    ) -> None:
        """Check what :meth:`forward` gave for a batch against :meth:`reference`, on a few rows.

        Parameters
        ----------
        refs : sequence of LayerRef or str
            What the pass was compiled for.
        images : numpy.ndarray of uint8, (batch, height, width, channel=3)
            What it was given.
        activations : sequence of numpy.ndarray of float32, (batch, …)
            What it gave, one for each ref.

        Raises
        ------
        ActivationError
            Where a layer differs by more than the tolerance of its precision (3e-4 of its largest
            activation for float32), and by more than rounding explains in this network.
        BackboneError
            Where an image alone gives another result than beside others, or each time another one.

        Warns
        -----
        FeatureStoreWarning
            Where a larger difference is accepted because the network amplifies rounding.
        """
        agreement.check(self, [LayerRef.parse(ref) for ref in refs], images, activations)

    def cut(self, ref: LayerRef | str, *, layer_prefix: str = "") -> Any:
        """Build a new plain model from raw images to the activation at a ref.

        Parameters
        ----------
        ref : LayerRef or str
            Where to cut.
        layer_prefix : str
            Put before the canonical names of the backbone's layers.

        Returns
        -------
        keras.Model
            Flat: ``image``, uint8 (batch, height, width, channel=3) of any size, ``resizing``,
            ``scaling``, copies of the layers under their canonical names, and ``reduction``
            where the ref has one, or where it takes a mask off, which stored features do not
            have. Training it leaves the backbone as it is.
        """
        import keras

        ref = LayerRef.parse(ref)
        self.shape(ref)
        with sources.seeded():
            image = keras.Input((None, None, 3), dtype="uint8", name="image")
            resized = at_rest(self.preprocessing.resizing())(image)
            scaled = self.preprocessing.scale(resized)
            output = clone(self._graph, scaled, [self._number(ref.layer)], layer_prefix)[0]
            reducing = self._reduction(ref)
            if reducing is not None:
                output = reducing(output)
            elif reduction.is_masked(self._graph.nodes[self._number(ref.layer)]):
                output = reduction.unmasked(output)
            return keras.Model(image, output, name=_model_name(self.name))

    # ------------------------------------------------------------------ inside

    def _require_like(self, given: Graph) -> None:
        """Raise where a layer of the user's was copied to one that computes something else."""
        own = [i for i in given.by_name.values() if not is_keras(type(given.nodes[i].operation))]
        if not own:
            return
        copies = [self._graph.by_name[given.nodes[number].name] for number in own]
        noise = np.random.default_rng(0).integers(0, 256, (2, *self.input_size, 3), dtype=np.uint8)

        def computed(graph: Graph, numbers: Sequence[int]) -> list[np.ndarray]:
            def compute(images: Any) -> list[Any]:
                scaled = self.preprocessing.scale(images)
                return [each[0] for each in graph.run(scaled, numbers, _at_inference)]

            return forward.plain(compute)(noise)

        found = computed(self._graph, copies)
        wanted, again = computed(given, own), computed(given, own)
        for number, ours, theirs, same in zip(own, found, wanted, again, strict=True):
            # One that is another each time is refused for that, where it is computed.
            steady = agreement.distance(same, theirs) <= agreement.TOLERANCE
            if steady and agreement.distance(ours, theirs) > agreement.TOLERANCE:
                node = given.nodes[number]
                raise BackboneError(
                    f"layer {node.name!r} ({node.kind}) computes something else when it is built"
                    " from its configuration: return all that it computes with from get_config"
                )

    def _computation(
        self, refs: Sequence[LayerRef | str], move: Callable[[Any], Any] | None = None
    ) -> Compute:
        """Return the function from a uint8 tensor to the activations at several refs.

        ``move`` is done to what the network takes and to what each of its layers gives.
        """
        parsed = [LayerRef.parse(ref) for ref in refs]
        for ref in parsed:
            self.shape(ref)
        numbers = [self._number(ref.layer) for ref in parsed]
        reductions = [self._reduction(ref) for ref in parsed]

        def compute(images: Any) -> list[Any]:
            scaled = self.preprocessing.scale(images)
            if move is None:
                outputs = self._graph.run(scaled, numbers, _at_inference)
            else:
                outputs = self._graph.run(move(scaled), numbers, partial(_moved, move))
            return [
                reduction.reduce(each[0], reduce)
                for each, reduce in zip(outputs, reductions, strict=True)
            ]

        return compute

    @cached_property
    def _weight_digests(self) -> list[str]:
        return identity.weight_digests(self._graph)

    @cached_property
    def _precisions(self) -> list[str]:
        return identity.precisions(self._graph)

    @cached_property
    def _cuts(self) -> list[int]:
        return [
            number
            for number in range(1, len(self._graph.nodes))
            if measures.why_no_cut(self._shapes[number]) is None
        ]

    def _number(self, layer: str) -> int:
        number = self._graph.by_name.get(layer)
        if number is None:
            own = self._graph.own_names.get(layer)
            hint = (
                f"the layer that the model itself calls so is {own!r} here"
                if own
                else nearest(layer, self.layer_names)
            )
            raise UnknownLayerError(f"no layer {layer!r} in {self.name}; {hint}")
        reason = measures.why_no_cut(self._shapes[number])
        if reason is not None:
            raise BackboneError(f"cannot cut {self.name} at {layer!r}: it {reason}")
        return number

    @cached_property
    def _layouts(self) -> list[str | None]:
        return reduction.layouts(self._graph)

    def _reduction(self, ref: LayerRef) -> Any:
        """Return the layer that reduces a ref's activation, or None."""
        number = self._number(ref.layer)
        return reduction.reduction(ref, len(self._shapes[number][0]), self._layouts[number])


def _at_inference(node: Node) -> Callable:
    operation = node.operation
    if not getattr(operation, "_call_has_training_arg", False):
        return operation
    return lambda *args, **kwargs: operation(*args, **{**kwargs, "training": False})


def _moved(move: Callable[[Any], Any], node: Node) -> Callable:
    import keras

    call = _at_inference(node)
    return lambda *args, **kwargs: keras.tree.map_structure(move, call(*args, **kwargs))


def _model_name(name: str) -> str:
    return "".join(each if each.isalnum() or each in "-_." else "_" for each in name)
