"""The backbone: a frozen network behind its preprocessing."""

from __future__ import annotations

import copy
import html
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.backbone import cost, engines, identity, numerics, recipes, sources
from featurestore.backbone.computing import Computation
from featurestore.backbone.copying import clone, inference_by_default, seeded
from featurestore.backbone.cost import LayerInfo
from featurestore.backbone.custom import is_keras
from featurestore.backbone.cuts import Cuts
from featurestore.backbone.engines import Computing
from featurestore.backbone.forward import CompiledModel, Forward, require_tensorflow
from featurestore.backbone.onnx_graph import OnnxGraph
from featurestore.backbone.onnx_part import OnnxPart
from featurestore.backbone.preprocessing import Preprocessing, Size
from featurestore.backbone.recipes import Recipe
from featurestore.backbone.refs import LayerRef
from featurestore.backbone.resizing import compiled_resize
from featurestore.digests import digest_fields
from featurestore.errors import BackboneError, FeatureStoreWarning
from featurestore.table import Table


class Backbone:
    """A frozen Keras model with its own preprocessing. Make one with :meth:`open`.

    Attributes
    ----------
    name : str
        The name in feature keys: the application's, the file's or the model's.
    spec : dict
        JSON values from which :meth:`from_spec` builds the same backbone.
    preprocessing : Preprocessing
        How a decoded image becomes the input of the first layer.
    computing : Computing
        Engine and precision.
    cuts : Cuts
        Where it can be cut.
    """

    def __init__(self, recipe: Recipe, computing: Computing) -> None:
        require_tensorflow()
        if recipe.name == "pixels" and recipe.source["source"] != "pixels":
            raise BackboneError(
                "a model cannot be called 'pixels', which is the baseline without a network",
                remedy="rename the file, or pass another name",
            )
        self.name = recipe.name
        self.preprocessing: Preprocessing = recipe.preprocessing
        self.computing = computing
        self.spec = {**recipe.source, **recipe.preprocessing.to_dict(), **computing.fields()}
        if recipe.special_tokens is not None:
            self.spec["special_tokens"] = recipe.special_tokens
        self._graph = recipe.graph.sized(self.input_size)
        self.cuts = Cuts(recipe.name, self._graph, recipe.special_tokens)
        # The user's code may change later, which is refused then.
        self._graph_digests = identity.graph_digests(self._graph)

    def __repr__(self) -> str:
        height, width = self.input_size
        return f"Backbone({self.name!r}, {height}×{width}, {len(self.layer_names)} layers)"

    def _repr_html_(self) -> str:
        return f"<p><code>{html.escape(repr(self))}</code></p>{self.layers()._repr_html_()}"

    @classmethod
    def of(cls, model: Any) -> Backbone:
        """Return a backbone unchanged, or make one from a name, a file or a model: :meth:`open`."""
        return model if isinstance(model, cls) else cls.open(model)

    @classmethod
    def open(
        cls,
        model: Any,
        weights: str | Path | None = None,
        input_size: Size | None = None,
        *,
        name: str | None = None,
        **options: Any,
    ) -> Backbone:
        """Make a backbone from a network of Keras, a model file or a model object.

        Parameters
        ----------
        model : str, path or keras.Model
            The name of a constructor of ``keras.applications`` in any case: it is built without its
            classifier. Or ``hub:PRESET``, a preset of KerasHub by name or folder. Or a functional
            ``.keras`` or ``.h5`` file, loaded in safe mode, or an ``.onnx`` file. Or a functional
            model, which is copied as it is now: training it later does not change the backbone. Or
            ``pixels``: no network, one layer ``pixels`` of 0 to 1; the baseline that other features
            have to beat.
        weights : str or path, optional
            For an application ``imagenet`` (the default; downloaded once by Keras), ``random`` (the
            same every time), or a weights file. For a model file, a weights file to load over the
            model's own.
        input_size : int or (int, int), optional
            Side, or height and width; by default what the network was trained on. Required for a
            model that leaves it open.
        name : str, optional
            For a file by default the file's without its ending; for a model object the model's
            without the number that Keras gives it.
        **options
            Of :class:`Preprocessing` and :class:`Computing`; None means the default. ``scaling`` is
            required for a model that does not show it, by scaling in its graph or by beginning
            with a network of ``keras.applications``. ``special_tokens`` is the number of tokens at
            the beginning of a sequence that are not patches, the class token first; networks of
            KerasHub state it.

        Raises
        ------
        BackboneError
            No such network or file, no such weights, or weights of another network.
        InputError
            An option that is unknown or not one of the allowed values.
        """
        options = {**options, "input_size": input_size}
        options = {name: value for name, value in options.items() if value is not None}
        computing, options = Computing.split(options)
        return cls(recipes.load(model, weights, name, options), computing)

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Backbone:
        """Build the backbone that a ``spec`` describes.

        Raises
        ------
        BackboneError
            If it was made from a Keras model object, its file is gone, or ``spec`` is not valid.
        """
        return cls(*recipes.load_spec(spec))

    def packed(self) -> dict[str, Any]:
        """Return values from which :meth:`unpacked` makes the same backbone in another process.

        Names and paths stay what they are. A Keras model object becomes the bytes of its file.

        Raises
        ------
        BackboneError
            If the model cannot be saved.
        """
        model = sources.saved(self._graph, self.name) if self.spec["source"] == "model" else None
        return {"spec": self.spec, "computing": self.computing.model_dump(), "model": model}

    @classmethod
    def unpacked(cls, packed: dict[str, Any]) -> Backbone:
        """Make a backbone of what :meth:`packed` returned; raises as :meth:`from_spec`."""
        spec = dict(packed["spec"])
        if packed["model"] is None:
            backbone = cls.from_spec(spec)
        else:
            del spec["source"]
            backbone = cls.open(sources.from_bytes(packed["model"], spec["name"]), **spec)
        return backbone.using(**packed["computing"])

    def using(self, **options: Any) -> Backbone:
        """Return this backbone with another engine or precision: options of :class:`Computing`.

        Examples
        --------
        >>> fast = vgg16.using(precision="bfloat16")  # doctest: +SKIP
        """
        other = copy.copy(self)
        other.computing = Computing.of({**self.computing.model_dump(), **options})
        fields = Computing.model_fields
        spec = {name: value for name, value in self.spec.items() if name not in fields}
        other.spec = {**spec, **other.computing.fields()}
        return other

    def in_float32(self) -> Backbone:
        """Return this backbone as a promoted model computes it: in float32, by any engine."""
        if self.computing.precision == "float32":
            return self
        return self.using(precision="float32", engine="auto")

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width that the first layer sees."""
        return self.preprocessing.input_size

    @property
    def is_onnx(self) -> bool:
        """Whether it is an ONNX file, which Keras cannot train."""
        return isinstance(self._graph, OnnxGraph)

    @property
    def operations(self) -> list[Any]:
        """The layers and operations of the network, in order."""
        return [node.operation for node in self._graph.nodes[1:]]

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers where you can cut, in order."""
        return self.cuts.names

    def layers(self) -> Table[LayerInfo]:
        """Describe every layer where you can cut, in order."""
        return cost.table(self._graph)

    def shape(self, ref: LayerRef | str) -> tuple[int, ...]:
        """Return the shape of one sample's activation at a ref, reduced if the ref says so."""
        return self.cuts.shape(ref)

    def prefix_digest(self, layer: str) -> str:
        """Return the digest of everything that determines the activation of a layer."""
        return digest_fields(self.prefix_fields(layer))

    def prefix_fields(self, layer: str) -> dict[str, Any]:
        """Return the fields behind a prefix digest, which explain a miss."""
        identity.refuse_other_defaults()
        number, special = self.cuts.number(layer), self.cuts.special_tokens
        return {
            "graph": self._graph_digests[number],
            "weights": self._weight_digests[number],
            "preprocessing": self.preprocessing.fields(),
            "input_size": list(self.input_size),
            "precision": self.precision(layer),
            **self.computing.fields(),
            **({} if special is None else {"special_tokens": special}),
        }

    def precision(self, layer: str) -> str:
        """Return the types that the network computes with up to a layer, joined by ``+``."""
        if self.computing.precision != "float32":
            return self.computing.precision
        return self._precisions[self.cuts.number(layer)]

    @cached_property
    def resize(self) -> Callable[[np.ndarray], np.ndarray]:
        """Function that resizes one decoded image, to the same pixels as the layer in a cut model.

        It takes and returns uint8 (height, width, channel=3); an image of the input size is
        returned without a copy. Many threads may call it.
        """
        return compiled_resize(self.preprocessing.resizing())

    def computation(self, refs: Sequence[LayerRef | str], source: str | None = None) -> Computation:
        """Return the function from a uint8 tensor to the activations at several refs.

        With ``source``, the function takes stored activations of that layer.

        Raises
        ------
        BackboneError
            If you cannot cut at a ref, or it needs more than ``source``.
        """
        parsed = [LayerRef.parse(ref) for ref in refs]
        for ref in parsed:
            self.shape(ref)
        ends = tuple((self.cuts.number(ref.layer), ref) for ref in parsed)
        start, precision = self.cuts.start(parsed, source), self.computing.precision
        special = self.cuts.special_tokens
        rest = self.preprocessing, ends, start, precision, special
        if isinstance(self._graph, OnnxGraph):
            return OnnxPart(self._graph, *rest)
        return Computation(self._graph, *rest)

    def forward(self, refs: Sequence[LayerRef | str]) -> CompiledModel:
        """Compile the network up to several refs.

        Returns
        -------
        CompiledModel
            From images, uint8 (batch, height, width, channel=3) of the input size, to a float32
            array (batch, …) for each ref. Any batch size. Compile once, call often. Its first batch
            is checked: errors are those of :func:`numerics.check`.

        Raises
        ------
        BackboneError
            If a weight on the way is NaN.
        """
        part = self.computation(refs)
        identity.refuse_nan(part.nodes)
        if reason := engines.slower(self.computing.precision):
            warnings.warn(
                f"{self.computing.precision} is slower than float32 here: {reason}",
                FeatureStoreWarning,
                stacklevel=2,
            )
        return numerics.check_first_batch(part, self._compiled(part))

    def attends(self, refs: Sequence[LayerRef | str]) -> bool:
        """Whether Keras computes attention, or code that is not its own, up to refs."""
        return not self.is_onnx and any(
            "Attention" in node.kind or not is_keras(type(node.operation))
            for node in self.computation(refs).nodes
        )

    def forward_with(
        self, engine: str, refs: Sequence[LayerRef | str], precision: str | None = None
    ) -> CompiledModel:
        """Compile as :meth:`forward` with one engine, or in another precision too; unchecked."""
        precision = precision or self.computing.precision
        other = self.using(engine=engine, precision=precision)
        return other._compiled(other.computation(refs))

    def tail(self, source: str, refs: Sequence[LayerRef | str]) -> CompiledModel:
        """Compile the network from the stored activation of a layer to several refs.

        Parameters
        ----------
        source : str
            One of :meth:`Cuts.derivable_from` of every ref.
        refs : sequence of LayerRef or str

        Returns
        -------
        CompiledModel
            From whole activations of ``source``, float16 or float32 (batch, …), to a float32 array
            (batch, …) for each ref. Any batch size.

        Raises
        ------
        BackboneError
            If a ref needs more than ``source``, or a weight on the way is NaN.
        """
        part = self.computation(refs, source)
        identity.refuse_nan(part.nodes)
        return self._compiled(part)

    def check_tail(
        self,
        tail: Forward,
        ref: LayerRef | str,
        stored: np.ndarray,
        images: np.ndarray,
        dtype: str,
    ) -> numerics.Derived:
        """Compare what :meth:`tail` gives for stored activations with the network on their images.

        Parameters
        ----------
        tail : callable
            From the layer that is stored to ``ref``.
        ref : LayerRef or str
        stored : numpy.ndarray
            Whole activations of that layer as they are stored, (row, …), of a few rows.
        images : numpy.ndarray of uint8, (row, height, width, channel=3)
            The resized images of the same rows.
        dtype : {"float16", "float32"}
            The type that the derived features will have.
        """
        exactly = self.computing.precision == "float32"
        (wanted,) = (self.reference if exactly else self.forward)([ref])(images)
        part = self.computation([ref])
        return numerics.check_derived(part, tail(stored)[0], wanted, images, dtype)

    def reference(self, refs: Sequence[LayerRef | str]) -> Forward:
        """Return the reference for :meth:`forward`: each layer by itself, on the CPU. Slow."""
        return self.computation(refs).plain()

    def cut(self, ref: LayerRef | str) -> Any:
        """Build a new plain model from raw images to the activation at a ref.

        Returns
        -------
        keras.Model
            Flat: ``image``, uint8 (batch, height, width, channel=3) of any size, ``resizing``,
            ``scaling``, copies of the layers under their canonical names, and ``reduction``
            if the ref has one. Training it leaves the backbone as it is.
        """
        import keras

        ref = LayerRef.parse(ref)
        self.shape(ref)
        if self.is_onnx:
            raise BackboneError(f"{self.name} is an ONNX file, of which there is no Keras model")
        with seeded():
            image = keras.Input((None, None, 3), dtype="uint8", name="image")
            resized = inference_by_default(self.preprocessing.resizing())(image)
            scaled = self.preprocessing.scale(resized)
            output = clone(self._graph, scaled, [self.cuts.number(ref.layer)], fixed=True)[0]
            if ref.reduction is not None:
                output = ref.reduce(output, self.cuts.special_tokens)
            name = "".join(c if c.isalnum() or c in "-_." else "_" for c in self.name)
            return keras.Model(image, output, name=name)

    def _compiled(self, part: Computation) -> CompiledModel:
        identity.refuse_changes(self._graph, self._graph_digests)
        return part.compiled(self.computing, self.name)

    @cached_property
    def _weight_digests(self) -> list[str]:
        return identity.weight_digests(self._graph)

    @cached_property
    def _precisions(self) -> list[str]:
        return identity.precisions(self._graph)
