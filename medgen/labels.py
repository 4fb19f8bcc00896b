"""Labels of images: classes, findings or continuous conditions, by name or number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

LabelKind: TypeAlias = Literal["none", "single", "multi", "continuous"]
_Item: TypeAlias = int | str | float
_Plain: TypeAlias = "_Item | Sequence[_Item | Sequence[_Item]] | Tensor | None"
Label: TypeAlias = "_Plain | NDArray[Any] | np.generic"


@dataclass(frozen=True)
class LabelSpace:
    """The labels of a data set or a generator.

    Attributes:
        kind: ``none``, ``single`` (one class per image), ``multi`` (any set of findings) or ``continuous``
            (one number per name, such as an age).
        names: Classes, findings or conditions in the order of the label vector.
    """

    kind: LabelKind = "none"
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("none", "single", "multi", "continuous"):
            raise ValueError(f"label_kind is {self.kind!r}; use 'none', 'single', 'multi' or 'continuous'")
        if (self.kind == "none") != (not self.names):
            raise ValueError(f"label_kind {self.kind!r} does not go with label_names {list(self.names)}")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"label_names has a name twice: {list(self.names)}")

    def __len__(self) -> int:
        return len(self.names)

    def index(self, label: int | str | float) -> int:
        """Number of a class or finding given by name (any case) or number.

        Raises:
            ValueError: If there is no such label; the message lists all labels.
        """
        if isinstance(label, str):
            folded = [name.casefold() for name in self.names]
            if label.casefold() in folded:
                return folded.index(label.casefold())
            if label.strip().isdigit():  # "--label 1" on a command line
                return self.index(int(label))
            raise ValueError(f"label {label!r} is unknown; {self._choices()}")
        if isinstance(label, bool) or not isinstance(label, Real) or label % 1 != 0:
            raise ValueError(f"label {label!r} is neither a name nor a whole number; {self._choices()}")
        if not 0 <= label < len(self.names):
            raise ValueError(f"label {label} is out of range; {self._choices()}")
        return int(label)

    def _choices(self) -> str:
        return f"use 0-{len(self.names) - 1} or one of {', '.join(map(repr, self.names))}"

    def resolve(self, label: Label, n: int) -> Tensor | None:
        """Turn a user's label into one condition per image.

        Args:
            label: ``None`` for no condition. For ``single``: a class (name or number) for all images, or one class per
                image. For ``multi``: one finding, a sequence of findings for all images, or one such sequence per
                image. For ``continuous``: one number per condition, or one such sequence per image. A tensor or array
                in the shape of the result is checked and used as it is.
            n: Number of images.

        Returns:
            ``None``, classes (n,) int64, or conditions (n, K) float32.

        Raises:
            ValueError: If a label is unknown, out of range or of the wrong shape, or the kind is ``none``.
        """
        if label is None:
            return None
        if self.kind == "none":
            raise ValueError(f"label is {label!r}, but this model is unconditional; leave label out")
        plain = _without_numpy(label)
        return self._classes(plain, n) if self.kind == "single" else self._vectors(plain, n)

    def _classes(self, label: _Plain, n: int) -> Tensor:
        import torch

        if isinstance(label, (int, str, float)):
            return torch.full((n,), self.index(label), dtype=torch.int64)
        items = label.tolist() if isinstance(label, torch.Tensor) else list(label or ())
        items = items if isinstance(items, list) else [items]
        if len(items) != n:
            raise ValueError(f"label has {len(items)} entries for {n} images; give one label, or one per image")
        return torch.tensor([self.index(item) for item in items], dtype=torch.int64)

    def _vectors(self, label: _Plain, n: int) -> Tensor:
        import torch

        if isinstance(label, torch.Tensor):
            rows = label.to(torch.float32).expand(n, -1) if label.dim() == 1 else label.to(torch.float32)
        else:
            items: list[Any] = [label] if isinstance(label, (int, str, float)) else list(label or ())
            if any(isinstance(item, (list, tuple)) for item in items):
                rows = torch.tensor([self._vector(list(item)) for item in items], dtype=torch.float32)
            else:
                rows = torch.tensor(self._vector(items), dtype=torch.float32).expand(n, -1)
        if rows.shape != (n, len(self)):
            raise ValueError(
                f"label has shape {tuple(rows.shape)}; {n} images and {len(self)} names need {(n, len(self))}"
            )
        if self.kind == "multi" and not bool(((rows == 0) | (rows == 1)).all()):
            raise ValueError("label of a multi-label model holds values other than 0 and 1")
        return rows.contiguous()

    def _vector(self, items: list[Any]) -> list[float]:
        if self.kind == "continuous":
            if len(items) != len(self):
                raise ValueError(
                    f"label {items} has {len(items)} numbers; give one for each of {', '.join(self.names)}"
                )
            return [self._number(item) for item in items]
        found = {self.index(item) for item in items}
        return [float(position in found) for position in range(len(self))]

    def _number(self, item: Any) -> float:
        try:
            return float(item)
        except (TypeError, ValueError):
            raise ValueError(f"label {item!r} is not a number; give one for each of {', '.join(self.names)}") from None

    def describe(self, condition: Tensor | None, n: int) -> list[str]:
        """Short texts for tables and captions, one per image: ``Pneumonia``, ``Edema|Effusion``, ``age=63``."""
        if condition is None:
            return [""] * n
        if self.kind == "single":
            return [self.names[int(item)] for item in condition]
        rows = [list(zip(self.names, row, strict=True)) for row in condition.tolist()]
        if self.kind == "multi":
            return ["|".join(name for name, found in row if found) for row in rows]
        return ["|".join(f"{name}={value:g}" for name, value in row) for row in rows]


def _without_numpy(label: Label) -> _Plain:
    """Convert NumPy arrays of numbers to tensors, NumPy scalars and arrays of names to plain Python values."""
    import numpy as np
    import torch

    if not isinstance(label, (np.ndarray, np.generic)):
        return label
    plain: _Plain = label.tolist()
    return torch.tensor(plain) if label.ndim and label.dtype.kind in "biuf" else plain
