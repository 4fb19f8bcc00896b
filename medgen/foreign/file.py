"""Files of other programs, of all kinds that medgen reads."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from medgen.foreign.lightning_files import LightningFile, lightning_content
from medgen.foreign.network_pickles import PickledNetwork, is_pickle, read_network_pickle
from medgen.foreign.torch_files import read_torch_file


class ForeignFile:
    """A file that is read once, on first access, without running anything in it.

    Every property may raise a `FileNotFoundError`, or a `CheckpointError` if the file is damaged or unsafe.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def of(cls, source: str | Path | ForeignFile) -> ForeignFile:
        """Wrap a path; a `ForeignFile` is returned unchanged."""
        return source if isinstance(source, ForeignFile) else cls(source)

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def is_network_pickle(self) -> bool:
        """Whether the file is a pickle of networks (``.pkl``)."""
        return is_pickle(self.path)

    @cached_property
    def networks(self) -> dict[str, PickledNetwork]:
        """Networks of a pickle by name; empty for other files."""
        return read_network_pickle(self.path) if self.is_network_pickle else {}

    @cached_property
    def content(self) -> object:
        """Content of a file of ``torch.save``; None for a pickle of networks."""
        return None if self.is_network_pickle else read_torch_file(self.path)

    @cached_property
    def lightning(self) -> LightningFile | None:
        """Lightning checkpoint; None for other files."""
        is_checkpoint = isinstance(self.content, dict) and isinstance(self.content.get("state_dict"), dict)
        return lightning_content(self.content, self.path) if is_checkpoint else None

    def summary(self) -> str:
        """Short list of the parts of the file."""
        if self.networks:
            network = self.networks.get("G_ema", next(iter(self.networks.values())))
            parts = dict.fromkeys(".".join(name.split(".")[:2]) for name in network.state_dict)
            return f"{' and '.join(self.networks)}, a {network.class_name} of {_listed(parts) or 'no weights'}"
        found = self.lightning.state_dict if self.lightning else self.content
        if not isinstance(found, dict):
            return f"a {type(found).__name__}"
        parts = dict.fromkeys(str(name).partition(".")[0] for name in found)
        return f"{'a state_dict of ' if self.lightning else ''}{_listed(parts) or 'nothing'}"


def _listed(names: dict[str, None], most: int = 8) -> str:
    shown = [f"{name:.40}" for name in list(names)[:most]]
    return ", ".join([*shown, "..."] if len(names) > most else shown)
