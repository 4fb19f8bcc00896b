"""Counts of what makes the source tree hard to extend, read from its syntax; `python -m tests.structure` prints them.

Every count has a limit in `LIMITS`. `tests/test_structure.py` fails where a count is above its limit, so that no change
makes the tree worse. A change that lowers a count lowers the limit, too.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "medgen"


class Limit(NamedTuple):
    """The largest count allowed now, the one to reach (None: the lower the better), and the smallest one there can be.

    A count below `least` means that the counting function no longer recognises what it counts.
    """

    most: int
    aim: int | None
    least: int = 0


LIMITS: dict[str, Limit] = {
    "circles of imports": Limit(2, 2),
    "files in the largest circle": Limit(2, 2),
    "families named outside their folder": Limit(0, 0),
    "config fields that repeat a part's field": Limit(0, 0),
    "lines that hand config fields to a part": Limit(0, 0),
    "patch discriminators": Limit(1, 1, least=1),
    "casts": Limit(49, None),
    "overrides of published that only cast": Limit(0, 0),
    "checks of the range of images": Limit(1, 1, least=1),
    "openings of a sampling session": Limit(1, 1, least=1),
    "lines outside the families": Limit(22_200, None, least=1),
}

NAMES_FAMILIES = ("zoo.py", "nn/vqvae2.py")
"""Files that name families by design: the table of checkpoints, and the network that has this name."""
REGISTRY = "FAMILIES"
"""The table of `families/__init__.py`, which may name them, as may the import of their records."""
OTHER_MEANINGS: tuple[str, ...] = ()
"""Families whose name is also a word of the field, such as that of a sampler: outside their folder only their import
path counts."""
SHARED_FIELDS = frozenset({"image_size", "channels", "label_kind", "label_names", "intensity_window", "intensity_unit"})
"""Fields that every generator's config has; a part may be told them."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, eq=False)  # so that a circle or a bridge is looked for once in each
class Source:
    """A package, read but not imported."""

    package: Path

    @cached_property
    def files(self) -> dict[str, ast.Module]:
        """The syntax of every file, by its path within the package."""
        return {
            path.relative_to(self.package).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
            for path in sorted(self.package.rglob("*.py"))
        }

    @cached_property
    def modules(self) -> dict[str, str]:
        """The file of every module, by the module's full name."""
        return {self._module(file): file for file in self.files}

    @cached_property
    def families(self) -> tuple[str, ...]:
        """The folders of families."""
        inner = {file.split("/")[1] for file in self.files if file.startswith("families/") and file.count("/") > 1}
        return tuple(sorted(inner))

    def _module(self, file: str) -> str:
        parts = [self.package.name, *file.removesuffix(".py").split("/")]
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def imports(self, file: str) -> set[str]:
        """Modules of the package that a file imports, also within functions; not those for type checkers only."""
        found = set()
        here = self._module(file).split(".")
        folder = here if file.endswith("__init__.py") else here[:-1]
        for node in runtime_nodes(self.files[file]):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = folder[: len(folder) - node.level + 1] if node.level else []
                source = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
                for alias in node.names:
                    inner = f"{source}.{alias.name}"
                    found.add(inner if inner in self.modules else source)
        return found & self.modules.keys()


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under ``if TYPE_CHECKING:``."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and name_of(child.test) == "TYPE_CHECKING":
            for other in child.orelse:
                yield from runtime_nodes(other)
        else:
            yield from runtime_nodes(child)


def name_of(node: ast.AST | None) -> str:
    """The last name of ``a``, ``a.b``, ``a(...)``, ``a[...]`` or the text ``"a"``; empty for anything else."""
    if isinstance(node, ast.Call):
        return name_of(node.func)
    if isinstance(node, ast.Subscript):
        return name_of(node.value)
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Every call within a tree."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def functions(source: Source) -> Iterator[tuple[str, str, Function]]:
    """File, name and syntax of every function that is not within another one; methods are named after their class."""

    def within(tree: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
        for child in ast.iter_child_nodes(tree):
            if isinstance(child, Function):
                yield prefix + child.name, child
            elif isinstance(child, ast.ClassDef):
                yield from within(child, f"{prefix}{child.name}.")
            elif not isinstance(child, ast.expr):
                yield from within(child, prefix)

    for file, tree in source.files.items():
        for name, function in within(tree, ""):
            yield file, name, function


@lru_cache(maxsize=1)
def circles(source: Source) -> list[list[str]]:
    """Groups of files of which each imports every other one, directly or through others; largest first."""
    imports = {module: source.imports(file) for module, file in source.modules.items()}
    reached = {module: _reached(module, imports) for module in imports}
    groups = {
        tuple(sorted(source.modules[other] for other in reached[module] if module in reached[other]))
        for module in imports
        if module in reached[module]
    }
    return sorted((list(group) for group in groups if len(group) > 1), key=lambda group: (-len(group), group))


def _reached(start: str, imports: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = imports[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def families_outside(source: Source) -> list[str]:
    """Each file outside a family's folder, with a family that its code, names and texts other than docstrings have."""
    found = []
    for file, tree in source.files.items():
        if file in NAMES_FAMILIES or file.startswith(tuple(f"families/{family}/" for family in source.families)):
            continue  # a family may build on another
        words = "\n".join(_words(tree, in_registry=file == "families/__init__.py"))
        found += [f"{file}: {family}" for family in source.families if _name(family, words)]
    return found


def _name(family: str, words: str) -> bool:
    """Whether identifiers or texts have a family's name as a word of its own, as ``NameModule`` and ``name-cxr`` do."""
    if family in OTHER_MEANINGS:
        return bool(re.search(rf"families[./]{re.escape(family)}\b", words))
    return bool(re.search(rf"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))(?i:{re.escape(family)})(?![a-z])", words))


def _words(tree: ast.AST, *, in_registry: bool) -> Iterator[str]:
    """Identifiers, imported names and texts of a tree without docstrings, and without the registry in its file."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue  # a docstring
        if in_registry and isinstance(child, ast.ImportFrom) and str(child.module).endswith("families"):
            continue
        if in_registry and isinstance(child, ast.Assign | ast.AnnAssign):
            targets = child.targets if isinstance(child, ast.Assign) else [child.target]
            if any(name_of(target) == REGISTRY for target in targets):
                continue
        for _, value in ast.iter_fields(child):
            values = value if isinstance(value, list) else [value]
            yield from (item for item in values if isinstance(item, str))
        yield from _words(child, in_registry=in_registry)


class Bridge(NamedTuple):
    """A function that hands fields of one config to another one."""

    place: str
    fields: frozenset[str]
    lines: int


@lru_cache(maxsize=1)
def bridges(source: Source) -> list[Bridge]:
    """Functions that build the config of a part, or change one with `replace`, from fields of an outer config.

    A config is a dataclass whose name ends in ``Config`` or ``Shape``. The outer one is what ``self`` is in its
    methods, or what a parameter is annotated with.
    """
    fields = _config_fields(source)
    found = []
    for file, name, function in functions(source):
        arguments = function.args
        outer = {
            argument.arg: name_of(argument.annotation)
            for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        } | {"self": name.split(".")[-2] if "." in name else ""}
        handed = {
            f"{outer[reading.value.id]}.{reading.attr}"
            for call in calls(function)
            if name_of(call) in fields.keys() | {"replace"}
            for value in (*call.args, *(keyword.value for keyword in call.keywords))
            for reading in ast.walk(value)
            if isinstance(reading, ast.Attribute) and isinstance(reading.value, ast.Name)
            if reading.attr in fields.get(outer.get(reading.value.id, ""), set())
        }
        if handed:
            lines = (function.end_lineno or function.lineno) - function.lineno + 1
            found.append(Bridge(f"{file}: {name}", frozenset(handed), lines))
    return found


def _config_fields(source: Source) -> dict[str, set[str]]:
    """The fields of every config by its name, those of its bases included, without those that all have."""
    classes = {
        node.name: node
        for tree in source.files.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(name_of(decorator) == "dataclass" for decorator in node.decorator_list)
    }

    def fields(name: str) -> set[str]:
        own = {name_of(item.target) for item in classes[name].body if isinstance(item, ast.AnnAssign)}
        return own.union(*(fields(name_of(base)) for base in classes[name].bases if name_of(base) in classes))

    return {name: fields(name) - SHARED_FIELDS for name in classes if name.endswith(("Config", "Shape"))}


def repeated_fields(source: Source) -> list[str]:
    """Fields of a config that exist only to become a field of a part's config, each with where that happens."""
    places: dict[str, list[str]] = {}
    for bridge in bridges(source):
        for field in bridge.fields:
            places.setdefault(field, []).append(bridge.place)
    return [f"{field} ({', '.join(places[field])})" for field in sorted(places)]


def patch_discriminators(source: Source) -> list[str]:
    """Classes called ``...Discriminator`` without a linear layer, so that no logit sees the whole image by design.

    ``Multiscale...`` ones do not count: they hold several.
    """
    return [
        f"{file}: {node.name}"
        for file, tree in source.files.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name.endswith("Discriminator")
        if "Multiscale" not in node.name and not any("linear" in name_of(call).lower() for call in calls(node))
    ]


def casts(source: Source) -> list[str]:
    """Every call of `typing.cast`."""
    return [
        f"{file}:{line}"
        for file, tree in source.files.items()
        for line in sorted(call.lineno for call in calls(tree) if ast.unparse(call.func) in ("cast", "typing.cast"))
    ]


def casting_overrides(source: Source) -> list[str]:
    """Overrides of ``published`` whose whole body is a cast of the base's."""
    found = []
    for file, name, function in functions(source):
        body = function.body
        if name.endswith(".published") and isinstance(last := body[-1], ast.Return) and name_of(last.value) == "cast":
            others = [item for item in body[:-1] if not isinstance(item, ast.Expr)]
            if not others and any(name_of(call) == "super" for call in calls(last)):
                found.append(f"{file}: {name}")
    return found


def image_checks(source: Source) -> list[str]:
    """Functions that compare something and refuse images with a message that says ``[0, 1]``."""
    found = []
    for file, name, function in functions(source):
        nodes = list(ast.walk(function))
        ordering = ast.Lt | ast.LtE | ast.Gt | ast.GtE
        compares = any(isinstance(node, ast.Compare) and isinstance(node.ops[0], ordering) for node in nodes)
        messages = [_text(node) for node in nodes if isinstance(node, ast.Raise)]
        if compares and any("images" in message and "[0, 1]" in message for message in messages):
            found.append(f"{file}: {name}")
    return found


def _text(tree: ast.AST) -> str:
    return "".join(
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def sampling_sessions(source: Source) -> list[str]:
    """Functions that make a `NoiseSource` or `Session` in evaluation mode, but for those that search with gradients."""
    found = []
    for file, name, function in functions(source):
        called = {name_of(call) for call in calls(function)}
        if called & {"NoiseSource", "Session"} and "evaluating" in called and "enable_grad" not in called:
            found.append(f"{file}: {name}")
    return found


def lines_of(source: Source) -> dict[str, int]:
    """Lines of each file."""
    return {file: len((source.package / file).read_bytes().splitlines()) for file in source.files}


def lines_per_family(source: Source) -> list[str]:
    """Lines of each family's folder."""
    lines = lines_of(source)
    return [
        f"{family}: {sum(n for file, n in lines.items() if file.startswith(f'families/{family}/'))}"
        for family in source.families
    ]


class Count(NamedTuple):
    """A number, and what it counts, one by one."""

    number: int
    found: list[str]


def _each(find: Callable[[Source], list[str]]) -> Callable[[Source], Count]:
    def count(source: Source) -> Count:
        found = find(source)
        return Count(len(found), found)

    return count


def _circles(source: Source) -> Count:
    found = circles(source)
    return Count(len(found), [f"{len(group)} files: {', '.join(group)}" for group in found])


def _largest_circle(source: Source) -> Count:
    found = circles(source)
    return Count(len(found[0]), found[0]) if found else Count(0, [])


def _bridge_lines(source: Source) -> Count:
    found = bridges(source)
    return Count(sum(bridge.lines for bridge in found), [f"{bridge.place}, {bridge.lines} lines" for bridge in found])


def _lines(source: Source) -> Count:
    families = tuple(f"families/{family}/" for family in source.families)
    shared = sum(number for file, number in lines_of(source).items() if not file.startswith(families))
    return Count(shared, lines_per_family(source))


COUNTS: dict[str, Callable[[Source], Count]] = {
    "circles of imports": _circles,
    "files in the largest circle": _largest_circle,
    "families named outside their folder": _each(families_outside),
    "config fields that repeat a part's field": _each(repeated_fields),
    "lines that hand config fields to a part": _bridge_lines,
    "patch discriminators": _each(patch_discriminators),
    "casts": _each(casts),
    "overrides of published that only cast": _each(casting_overrides),
    "checks of the range of images": _each(image_checks),
    "openings of a sampling session": _each(sampling_sessions),
    "lines outside the families": _lines,
}


def main(source: Source) -> int:
    """Print what was found of each point, then all counts with their limits and aims; 1 where a count is too large."""
    counted = {point: count(source) for point, count in COUNTS.items()}
    for point, (_, found) in counted.items():
        print(f"{point}:", *found, sep="\n  ")
    print(f"\n{'point':40} | {'count':>6} | {'limit':>6} | {'aim':>6}")
    for point, (number, _) in counted.items():
        most, aim, _ = LIMITS[point]
        print(f"{point:40} | {number:6} | {most:6} | {'-' if aim is None else aim:>6}")
    return int(any(number > LIMITS[point].most for point, (number, _) in counted.items()))


if __name__ == "__main__":
    sys.exit(main(Source(PACKAGE)))
