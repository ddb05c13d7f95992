"""An image classifier with scikit-learn's habits."""

from sklearn.base import BaseEstimator, ClassifierMixin

from coop_jax.learner import Learner


class Classifier(  # pyright: ignore[reportIncompatibleMethodOverride] - scikit-learn's X, y
    Learner, ClassifierMixin, BaseEstimator
):
    """A `coop_jax.learner.Learner`, whose arguments and methods it has, for scikit-learn's tools.

    These are `clone`, `cross_val_score` and the like.
    """
