"""Which models the visitors of a page can choose: the one it was started with and, where that is allowed, others.

It is allowed only on a page that nobody but its owner can reach: a choice reads folders of this machine, downloads, and
takes memory.
"""

from __future__ import annotations

import threading
from weakref import WeakValueDictionary

from speech_xl.model import SpeechModel


class ModelChoice:
    """Loads models, each once however many sessions use it; one that no session uses any more is let go."""

    def __init__(self, first: SpeechModel, is_open: bool):
        self.first = first
        self.is_open = is_open
        self._loading = threading.Lock()
        self._loaded: WeakValueDictionary[tuple[str, str], SpeechModel] = WeakValueDictionary()

    def load(self, name: str, backend: str) -> SpeechModel:
        """`name`: a checkpoint folder or Hub id, "" for the embedded model. SpeechXLError says why it cannot be had."""
        if not self.is_open:
            raise PermissionError("this page does not let its visitors choose a model")
        key = (name.strip(), backend)
        with self._loading:
            model = self._loaded.get(key)
            if model is None:
                model = self._loaded[key] = SpeechModel.load(key[0] or None, backend)
            return model
