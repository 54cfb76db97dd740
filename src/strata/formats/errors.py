"""One named error for each way a model file can be wrong.

Every message names the file and, where there is one, the tensor or key and the byte offset.
"""

from __future__ import annotations

from strata.errors import StrataError, UsageError


class FormatError(StrataError):
    """A model file or directory cannot be used as it is."""


def shown(name: object, limit: int = 100) -> str:
    """A name from a file, quoted and escaped so that it cannot disturb a terminal, and cut."""
    text = " ".join(repr(name).split("\n"))  # an array is written in lines
    return text if len(text) <= limit else text[:limit] + "..."


# --- any file ---------------------------------------------------------------------------------


class FileMissingError(FormatError):
    """There is nothing at the path."""


class NotAFileError(FormatError):
    """The path is a device, a pipe or a directory where a file is needed."""


class FileUnreadableError(FormatError):
    """The operating system refuses to open or read the file."""


class UnknownFormatError(FormatError):
    """The path is neither a GGUF file nor a Hugging Face directory."""


class TruncatedError(FormatError):
    """The file ends in the middle of its header."""


class ShortReadError(FormatError):
    """Tensor bytes that were there on opening are gone."""


class HeaderTooLargeError(FormatError):
    """A header, or a file beside the weights, is larger than any real model's."""


class DuplicateTensorError(FormatError):
    """Two tensors have the same name."""


class RankError(FormatError):
    """A tensor has more axes than the format or this program knows."""


class SizeOverflowError(FormatError):
    """A tensor's size does not fit 63 bits."""


class BlockShapeError(FormatError):
    """A row of a tensor is not a whole number of blocks of its type."""


class TensorOutOfFileError(FormatError):
    """A tensor's bytes reach past the end of its file."""


class TensorOverlapError(FormatError):
    """Two tensors share bytes."""


class InvalidTextError(FormatError):
    """A name is empty or not UTF-8."""


# --- GGUF -------------------------------------------------------------------------------------


class MagicError(FormatError):
    """The file does not begin with 'GGUF'."""


class BigEndianError(FormatError):
    """The file was written for big-endian machines."""


class VersionError(FormatError):
    """A GGUF version that this program does not read."""


class CountError(FormatError):
    """More tensors or keys are announced than the file could hold or this program allows."""


class StringLengthError(FormatError):
    """A string is announced that is longer than the file, or too long for a name."""


class ArrayLengthError(FormatError):
    """An array is announced that is longer than the file."""


class ValueTypeError(FormatError):
    """A metadata value has an unknown type number, or a key has the wrong type."""


class NestedArrayError(FormatError):
    """An array of arrays; no GGUF reader agrees on those."""


class BoolValueError(FormatError):
    """A truth value that is neither 0 nor 1."""


class DuplicateKeyError(FormatError):
    """Two metadata entries have the same key."""


class AlignmentError(FormatError):
    """general.alignment is not a power of two, or a tensor does not respect it."""


class ZeroDimensionError(FormatError):
    """A tensor has an axis of length zero."""


class TensorTypeError(FormatError):
    """A tensor has an unknown type number."""


class SplitNameError(FormatError):
    """A part of a split model is not named `name-00001-of-0000N.gguf`."""


class SplitPartMissingError(FormatError):
    """A part of a split model is not beside the others."""


class SplitMismatchError(FormatError):
    """The parts of a split model contradict each other or their names."""


# --- safetensors and Hugging Face directories -------------------------------------------------


class HeaderLengthError(FormatError):
    """The length of a safetensors header does not fit its file."""


class JsonSyntaxError(FormatError):
    """Text that should be JSON is not."""


class JsonDepthError(FormatError):
    """JSON nested deeper than any real file's."""


class JsonNumberError(FormatError):
    """NaN, an infinity or an absurdly long number in JSON."""


class JsonDuplicateKeyError(FormatError):
    """A JSON object has the same key twice."""


class JsonTypeError(FormatError):
    """A JSON value is missing or of another kind than the format says."""


class DtypeError(FormatError):
    """A safetensors dtype that this program does not read."""


class TensorSizeError(FormatError):
    """A tensor's byte range does not match its shape and dtype."""


class TensorHoleError(FormatError):
    """Bytes in a safetensors file that belong to no tensor."""


class ConfigMissingError(FormatError):
    """A directory without config.json."""


class WeightsMissingError(FormatError):
    """A directory without safetensors weights."""


class WeightsAmbiguousError(FormatError):
    """A directory with several weight files and no index."""


class IndexPathError(FormatError):
    """The index names something that is not a plain safetensors file name."""


class ShardMissingError(FormatError):
    """A file that the index names is not there."""


class IndexTensorError(FormatError):
    """The index and its files do not hold the same tensors."""


class Fp8ScaleError(FormatError):
    """The scale of an 8-bit weight has a shape, type or block size that is not understood."""


class ForeignFormatError(FormatError):
    """Weights that others quantised, in a variant that is not read, or not as it says."""


# --- wrong use ----------------------------------------------------------------------------------


class TensorNameError(UsageError):
    """A tensor was asked for that the model does not have."""


class RowRangeError(UsageError):
    """Rows were asked for that the tensor does not have, or that cut a block."""


class ClosedError(UsageError):
    """The model file was closed."""


class WriteError(FormatError):
    """A model file cannot be written as asked."""


class DiskFullError(WriteError):
    """The disk has less room than the file takes."""
