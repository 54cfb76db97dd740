"""Tokens of earlier texts on disk, so that guesses begin with what the last run had seen.

They lie in the KV store, by its rules: a directory that is marked, bounded, and refused where
others could write; what does not bear its secret is deleted. A file holds, little endian::

    magic "STRATATX", version u32, tokens u32
    tokens i32 [tokens]       -1 behind each text
    digest 32                 of all of the above, keyed with the directory's secret

What is in it changes which tokens are guessed, and never an answer.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import struct

import numpy as np

from strata.decode.suffix import END, Tokens
from strata.kv.store_directory import ForeignFileError, StoreDirectory, StoreError
from strata.machine.constants import HISTORY_TOKENS

_log = logging.getLogger("strata.kv")

_MAGIC, _VERSION = b"STRATATX", 1
_HEAD = struct.Struct("<8sII")
_DIGEST = 32


class KeptTexts:
    """The texts of one ``model`` (by ``strata.formats.fingerprint``) in ``directory``."""

    def __init__(self, directory: StoreDirectory, model: str) -> None:
        identity = hashlib.sha256(b"texts of " + model.encode()).digest()
        self._directory = directory
        self._name = directory.name(identity, identity, "texts")

    def load(self, most: int, vocabulary: int) -> Tokens:
        """The last ``most`` tokens; none where there is no such file, or it is not right."""
        try:
            return self._read(most, vocabulary)
        except FileNotFoundError:
            pass
        except (OSError, ForeignFileError) as error:
            _log.warning("%s is not used: %s", self._directory.path / self._name, error)
        except StoreError as error:
            _log.warning("%s deleted: %s", self._directory.path / self._name, error)
            self._directory.delete(self._name)
        return np.empty(0, np.int32)

    def keep(self, tokens: Tokens) -> None:
        """Write down what ``load`` is to give; where that cannot be, the log says so."""
        if not len(tokens):
            return
        data = _HEAD.pack(_MAGIC, _VERSION, len(tokens)) + tokens.astype("<i4").tobytes()
        data += self._directory.digest(data)
        try:
            if not self._directory.make_room(len(data)):
                return
            with self._directory.new(self._name, len(data)) as fd:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
        except (OSError, StoreError) as error:
            self._directory.failed(error)

    def _read(self, most: int, vocabulary: int) -> Tokens:
        with self._directory.opened(self._name) as fd:
            size = os.fstat(fd).st_size
            magic, version, count = _HEAD.unpack(os.pread(fd, _HEAD.size, 0).ljust(_HEAD.size))
            if (magic, version) != (_MAGIC, _VERSION):
                raise StoreError("not a file of this store, or of another version")
            if count > HISTORY_TOKENS or size != _HEAD.size + 4 * count + _DIGEST:
                raise StoreError(f"{size} bytes, not those of {count} tokens")
            data = os.pread(fd, size, 0)
        if not hmac.compare_digest(self._directory.digest(data[:-_DIGEST]), data[-_DIGEST:]):
            raise StoreError("it is damaged")
        tokens = np.frombuffer(data, "<i4", count, _HEAD.size)
        if count and not END <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
            raise StoreError("tokens that the vocabulary does not have")
        return tokens[count - min(count, most) :].astype(np.int32)
