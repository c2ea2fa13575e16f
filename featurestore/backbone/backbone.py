"""The backbone, and how to make one."""

from __future__ import annotations

import copy
import html
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.backbone import numerics, sources
from featurestore.backbone.custom import is_custom
from featurestore.backbone.engines import Computing
from featurestore.backbone.families import APPLICATIONS, application
from featurestore.backbone.forward import Pass
from featurestore.backbone.graph import Graph, flatten, is_automatic
from featurestore.backbone.network import Network
from featurestore.backbone.preprocessing import Preprocessing, Size
from featurestore.backbone.recognition import find_preprocessing
from featurestore.backbone.refs import LayerRef
from featurestore.errors import BackboneError, nearest, one_line, path_text, received
from featurestore.quiet import load_tensorflow


class Backbone(Network):
    """A frozen Keras model with its own preprocessing. Make one with a ``from_…`` method.

    Attributes
    ----------
    name : str
        The name in feature keys: the application's or the file's.
    spec : dict
        JSON values from which :meth:`from_spec` builds the same backbone.
    preprocessing : Preprocessing
        How a decoded image becomes the input of the first layer.
    computing : Computing
        Engine and precision.
    """

    def __init__(
        self,
        name: str,
        graph: Graph,
        preprocessing: Preprocessing,
        spec: dict[str, Any],
        computing: Computing | None = None,
    ) -> None:
        if name == "pixels" and spec["source"] != "pixels":
            raise BackboneError(
                "a model cannot be called 'pixels', which is the baseline without a network; rename"
                " the file, or pass another name"
            )
        super().__init__(name, graph, preprocessing, computing)
        self.spec = {**spec, **preprocessing.to_dict(), **self.computing.fields()}

    def __repr__(self) -> str:
        height, width = self.input_size
        return f"Backbone({self.name!r}, {height}×{width}, {len(self.layer_names)} layers)"

    def _repr_html_(self) -> str:
        return f"<p><code>{html.escape(repr(self))}</code></p>{self.layers()._repr_html_()}"

    def amplification(self, refs: Sequence[LayerRef | str], images: np.ndarray) -> list[float]:
        """Return how far rounding moves the activations at several refs.

        Parameters
        ----------
        refs : sequence of LayerRef or str
        images : numpy.ndarray of uint8, (row, height, width, channel=3)

        Returns
        -------
        list of float
            For each ref, the largest change when the last bit of each layer's result moves,
            relative to the largest activation: about 1e-6 for most networks in float32.
        """
        return numerics.amplification(self, refs, images)

    def forward(self, refs: Sequence[LayerRef | str]) -> Pass:
        """Compile one pass, as :meth:`Network.forward`, that checks its first batch.

        Errors of the first batch are those of :func:`numerics.check`.
        """
        return numerics.checked(self, refs)

    def using(self, **options: Any) -> Backbone:
        """Return this backbone with another engine or precision: options of :class:`Computing`.

        Examples
        --------
        >>> fast = vgg16.using(precision="bfloat16")  # doctest: +SKIP
        """
        other = copy.copy(self)
        other.computing = Computing.of({**self.computing.model_dump(), **options})
        spec = {key: each for key, each in self.spec.items() if key not in Computing.model_fields}
        other.spec = {**spec, **other.computing.fields()}
        return other

    def in_float32(self) -> Backbone:
        """Return this backbone as a promoted model computes it: in float32, by any engine."""
        if self.computing.precision == "float32":
            return self
        return self.using(precision="float32", engine="auto")

    @classmethod
    def of(cls, model: Any) -> Backbone:
        """Return a backbone unchanged, or make one from a name, a file or a model: :meth:`open`."""
        return model if isinstance(model, cls) else cls.open(model)

    @classmethod
    def from_application(
        cls,
        name: str,
        weights: str | Path = "imagenet",
        input_size: Size | None = None,
        *,
        include_top: bool = False,
        **options: Any,
    ) -> Backbone:
        """Build a network of ``keras.applications``.

        Parameters
        ----------
        name : str
            The constructor's name, in any case.
        weights : str or path
            ``imagenet`` (downloaded once by Keras), ``random`` (the same every time), or a
            weights file.
        input_size : int or (int, int), optional
            Side, or height and width; by default what the network was trained on.
        include_top : bool
            Keep the ImageNet classifier; with ``imagenet`` weights it fixes the input size.
        **options
            ``resize`` and ``interpolation``, see :class:`Preprocessing`; ``precision`` and
            ``engine``, see :class:`Computing`.

        Raises
        ------
        BackboneError
            No such network, no such weights, or weights of another network.
        InputError
            An option that is unknown or not one of the allowed values.
        """
        network = application(name)
        if network is None:
            known = [each.constructor for each in APPLICATIONS.values()]
            raise BackboneError(
                f"no keras.applications network is called {name!r}; {nearest(name, known)}"
            )
        computing, options = Computing.split(options)
        preprocessing = Preprocessing.of(
            {"input_size": input_size or network.size, "scaling": network.scaling, **options}
        )
        if preprocessing.scaling != network.scaling:
            raise BackboneError(
                f"{network.constructor} has scaling {network.scaling!r}; found scaling"
                f" {preprocessing.scaling!r}, which is for model files"
            )
        chosen = str(weights)
        if chosen not in ("imagenet", "random"):
            chosen = str(Path(weights).absolute())
        spec = {
            "source": "application",
            "name": network.name,
            "weights": chosen,
            "include_top": include_top,
        }
        model = sources.build_application(network, chosen, preprocessing.input_size, include_top)
        return cls(network.name, flatten(model), preprocessing, spec, computing)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        weights: str | Path | None = None,
        name: str | None = None,
        **options: Any,
    ) -> Backbone:
        """Load a functional ``.keras`` or ``.h5`` model, in safe mode.

        Parameters
        ----------
        path : str or path
            The model file.
        weights : str or path, optional
            A weights file to load over the model's own.
        name : str, optional
            By default the file's, without its ending.
        **options
            Of :class:`Preprocessing` and :class:`Computing`. ``input_size`` is required if the
            model leaves it open, and must match otherwise. ``scaling`` is required unless the model
            shows it, by scaling in its graph or by being a network of ``keras.applications``.
        """
        computing, options = Computing.split(options)
        model = sources.model_from_file(path)
        if weights is not None:
            sources.load_weights(model, weights)
        graph, found = flatten(model), Path(path)
        preprocessing = find_preprocessing(graph, found.name, **options)
        if any(is_custom(node.operation) for node in graph.nodes[1:]):
            # A custom layer may load what is neither in its configuration nor among its weights.
            graph = sources.copied(graph, preprocessing)
        spec = {
            "source": "file",
            "path": str(found.absolute()),
            "weights": None if weights is None else str(Path(weights).absolute()),
            "name": name or found.stem,
        }
        return cls(name or found.stem, graph, preprocessing, spec, computing)

    @classmethod
    def from_model(cls, model: Any, *, name: str | None = None, **options: Any) -> Backbone:
        """Copy a functional Keras model, as it is now.

        The model is not changed, and training it later does not change the backbone. Its name is by
        default the model's own, without the number that Keras gives it. Options are those of
        :meth:`from_file`.
        """
        import keras

        if not isinstance(model, keras.Model):
            raise BackboneError(f"the model is {received(model)}; expected a keras.Model")
        if name is None:
            automatic = is_automatic(model.name, type(model).__name__)
            name = automatic[1] if automatic else str(model.name)
        computing, options = Computing.split(options)
        graph = flatten(model)
        preprocessing = find_preprocessing(graph, name, **options)
        spec = {"source": "model", "name": name}
        return cls(name, sources.copied(graph, preprocessing), preprocessing, spec, computing)

    @classmethod
    def pixels(cls, input_size: Size = 32, **options: Any) -> Backbone:
        """Return a backbone without a network: its one layer ``pixels`` gives 0 to 1.

        It is the baseline that other features have to beat. Options are those of
        :meth:`from_application`.
        """
        load_tensorflow()
        import keras

        computing, options = Computing.split(options)
        preprocessing = Preprocessing.of({"input_size": input_size, **options})
        image = keras.Input((*preprocessing.input_size, 3), name="image")
        layer = keras.layers.Rescaling(1 / 255.0, name="pixels", dtype="float32")
        model = keras.Model(image, layer(image), name="pixels")
        return cls("pixels", flatten(model), preprocessing, {"source": "pixels"}, computing)

    @classmethod
    def open(cls, model: Any, *, weights: str | Path | None = None, **options: Any) -> Backbone:
        """Make a backbone from what the command line takes as MODEL, or from a Keras model.

        Parameters
        ----------
        model : str, path or keras.Model
            A ``keras.applications`` name in any case, a ``.keras`` or ``.h5`` file, or ``pixels``;
            or a model, as in :meth:`from_model`.
        weights : str or path, optional
            See :meth:`from_application` and :meth:`from_file`.
        **options
            Of :class:`Preprocessing` and :class:`Computing`; None means the default.
        """
        given = {name: value for name, value in options.items() if value is not None}
        keras = sys.modules.get("keras")  # Whoever has a Keras model has loaded Keras.
        if keras is not None and isinstance(model, keras.Model):
            if weights is not None:
                raise BackboneError("a keras.Model has its weights: load them with load_weights")
            return cls.from_model(model, **given)
        what = "a Backbone, the name of a keras.applications network, a model file or a keras.Model"
        text = path_text(model, "the backbone", what, BackboneError)
        if text.casefold() == "pixels":
            return cls.pixels(**given)
        if application(text) is None:
            if not Path(text).exists() and Path(text).suffix.lower() not in sources.KNOWN_ENDINGS:
                sources.refuse_names_of_hubs(text)
            if Path(text).exists() or Path(text).suffix:
                return cls.from_file(text, weights=weights, **given)
        return cls.from_application(text, weights or "imagenet", **given)

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Backbone:
        """Build the backbone that a ``spec`` describes.

        Raises
        ------
        BackboneError
            If it was made from a Keras model object, its file is gone, or ``spec`` is not valid.
        """
        makers: dict[str, Callable[..., Backbone]] = {
            "application": cls.from_application,
            "file": cls.from_file,
            "pixels": cls.pixels,
        }
        try:
            options = {key: value for key, value in spec.items() if key != "source"}
            if spec["source"] not in makers:
                raise BackboneError(
                    f"backbone {spec['name']!r} was made from a Keras model object, which only the"
                    " caller has: pass Backbone.from_model(…), or save the model and use its file"
                )
            return makers[spec["source"]](**options)
        except BackboneError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BackboneError(
                f"the backbone is recorded in a form unknown to this version ({one_line(error)});"
                " pass it in Python"
            ) from error

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
            found = cls.from_spec(spec)
        else:
            del spec["source"]
            found = cls.from_model(sources.from_bytes(packed["model"], spec["name"]), **spec)
        return found.using(**packed["computing"])
