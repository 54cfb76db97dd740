"""Model files: bytes on disk in, a checked index of tensors and metadata out. No arithmetic."""

from strata.formats.errors import FormatError
from strata.formats.model_file import ModelFile, open_model
from strata.formats.tensor_info import TensorInfo

__all__ = ["FormatError", "ModelFile", "TensorInfo", "open_model"]
