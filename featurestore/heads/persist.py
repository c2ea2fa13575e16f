"""Fitted estimators as files and back, without pickle: nothing stored can run code when loaded."""

from __future__ import annotations

from typing import Any

from featurestore.errors import DamagedError, HeadError, InputError, one_line
from featurestore.heads import search_trees
from featurestore.scratch import scratch

SKLEARN_FILE = "model.skops"
KERAS_FILE = "model.keras"

# What skops does not trust of itself and scikit-learn's own estimators hold. None of them runs
# code of the file's: they are containers of arrays and numbers, and functions of scikit-learn,
# scipy and numpy. Those that compiled code walks (the first four) are checked by
# `search_trees` when loaded, which is what skops leaves to the caller. The losses and links are
# trusted by newer releases of skops themselves.
TRUSTED = (
    "sklearn.tree._tree.Tree",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.neighbors._ball_tree.BallTree",
    *(
        f"sklearn.metrics._dist_metrics.{name}Distance64"
        for name in ("Euclidean", "Manhattan", "Chebyshev", "Minkowski")
    ),
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
    *(
        f"sklearn.gaussian_process.kernels.{name}"
        for name in (
            "CompoundKernel",
            "ConstantKernel",
            "DotProduct",
            "Exponentiation",
            "ExpSineSquared",
            "Hyperparameter",
            "Matern",
            "Product",
            "RBF",
            "RationalQuadratic",
            "Sum",
            "WhiteKernel",
        )
    ),
    *(
        f"sklearn._loss.{module}{name}"
        for module in ("loss.", "_loss.Cy")
        for name in (
            "AbsoluteError",
            "ExponentialLoss",
            "HalfBinomialLoss",
            "HalfGammaLoss",
            "HalfMultinomialLoss",
            "HalfPoissonLoss",
            "HalfSquaredError",
            "HalfTweedieLoss",
            "HalfTweedieLossIdentity",
            "HuberLoss",
            "PinballLoss",
        )
    ),
    *(
        f"sklearn._loss.link.{name}"
        for name in (
            "HalfLogitLink",
            "IdentityLink",
            "Interval",
            "LogLink",
            "LogitLink",
            "MultinomialLogit",
        )
    ),
    "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
    *(
        f"sklearn.feature_selection._{name}"
        for name in (
            "mutual_info.mutual_info_classif",
            "mutual_info.mutual_info_regression",
            "univariate_selection.chi2",
            "univariate_selection.f_classif",
            "univariate_selection.f_regression",
        )
    ),
    "numpy.dtype",
    "numpy.mean",
    # What a search keeps of its folds.
    "numpy.ma.MaskedArray",
    "numpy.ma.core.MaskedArray",
    "sklearn.metrics._scorer._PassthroughScorer",
    "sklearn.model_selection._split.KFold",
    "sklearn.model_selection._split.StratifiedKFold",
    "sklearn.utils._bunch.Bunch",
)


def dump_sklearn(estimator: Any, name: str) -> bytes:
    """Write a scikit-learn estimator, fitted or not, in the skops format.

    Raises
    ------
    HeadError
        If it holds a type that could not be loaded again without trusting foreign code.
    """
    import skops.io

    try:
        data = skops.io.dumps(estimator)
        foreign = sorted(set(skops.io.get_untrusted_types(data=data)) - set(TRUSTED))
    except Exception as error:  # whatever an object raises that skops cannot describe
        raise HeadError(
            f"head {name!r} cannot be stored without pickle: {one_line(error)}; "
            "use an estimator of scikit-learn's own, or a keras.Model"
        ) from error
    if foreign:
        raise HeadError(
            f"head {name!r} holds {', '.join(foreign)}, which could only be stored as code to be "
            "trusted; use scikit-learn's own estimators and functions, or a keras.Model"
        )
    return data


def load_sklearn(data: bytes, head_id: str) -> Any:
    """Read a scikit-learn estimator that `dump_sklearn` wrote.

    Raises
    ------
    DamagedError
        If the bytes are not such a file, or hold foreign types or trees out of bounds.
    """
    import skops.io

    try:
        estimator = skops.io.loads(data, trusted=list(TRUSTED))
    except Exception as error:  # a forged or foreign file can raise anything
        raise _damaged(head_id, SKLEARN_FILE, one_line(error)) from error
    fault = search_trees.fault(estimator)
    if fault:
        raise _damaged(head_id, SKLEARN_FILE, fault)
    return estimator


def dump_keras(model: Any) -> bytes:
    """Write a Keras model in the ``.keras`` format."""
    with scratch() as folder:
        path = folder / KERAS_FILE
        model.save(path)
        return path.read_bytes()


def load_keras(data: bytes, head_id: str) -> Any:
    """Read a Keras model in safe mode, which refuses code; it is not compiled.

    Raises
    ------
    DamagedError
        If the bytes are not such a file, or hold code.
    """
    from featurestore.backbone.model_files import load_model

    with scratch() as folder:
        path = folder / KERAS_FILE
        path.write_bytes(data)
        try:
            return load_model(path)
        except InputError as error:
            raise _damaged(head_id, KERAS_FILE, str(error)) from error


def _damaged(head_id: str, file: str, reason: str) -> DamagedError:
    return DamagedError(
        f"{file} of head {head_id!r} cannot be loaded: {reason}; "
        "fit the head again with `featurestore train` (`featurestore heads` lists the others)"
    )
