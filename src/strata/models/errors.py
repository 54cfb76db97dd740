"""What can be wrong with a model file as a model, beyond its bytes."""

from __future__ import annotations

from strata.errors import StrataError


class ModelError(StrataError):
    """Base of the errors below: a file that opens, but is not a model that Strata can build."""


class UnknownArchitecture(ModelError):
    """An architecture that no family here builds."""


class ConfigError(ModelError):
    """A hyperparameter that is missing, absurd, or asks for something that is not built."""


class MissingTensor(ModelError):
    """A tensor that the architecture needs and the file does not hold."""


class UnexpectedTensor(ModelError):
    """A tensor that the architecture has no use for: the file is not what it says it is."""


class TensorShape(ModelError):
    """A tensor whose shape does not follow from the hyperparameters."""


class TensorAxes(ModelError):
    """A tensor of three axes or more: experts, convolutions and the like."""


class TensorType(ModelError):
    """A tensor of whole numbers where weights are needed."""
