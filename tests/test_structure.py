"""The source tree must not become harder to extend; what is counted, and how far, stands in `tests/structure.py`."""

from textwrap import dedent

import pytest

from tests import structure
from tests.structure import COUNTS, LIMITS, PACKAGE, Source


@pytest.fixture(scope="module")
def medgen() -> Source:
    return Source(PACKAGE)


@pytest.fixture
def tree(tmp_path):
    """A function from files and their text to a package that holds them; ``room__init`` is ``room/__init__.py``."""

    def write(**files: str) -> Source:
        for name, text in files.items():
            *folders, last = name.split("__")
            path = tmp_path.joinpath("pack", *folders, f"{'__init__' if last == 'init' else last}.py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text))
        return Source(tmp_path / "pack")

    return write


@pytest.mark.parametrize("point", LIMITS)
def test_a_count_does_not_grow(point, medgen):
    number, found = COUNTS[point](medgen)
    most, _, least = LIMITS[point]
    listed = "\n  ".join(found)
    assert number <= most, f"{point}: {number}, at most {most} are allowed:\n  {listed}"
    assert number >= least, f"{point}: none is found any more; tell tests/structure.py what it looks like now"


def test_every_count_has_a_limit():
    assert COUNTS.keys() == LIMITS.keys()


def test_the_families_are_found(medgen):
    assert medgen.families


def test_modules_that_import_each_other_are_a_circle(tree):
    source = tree(
        a="import pack.b",
        b="from pack import c",
        c="def later():\n    from pack.a import thing",
        d="import pack.a",
        alone="import torch",
    )
    assert structure.circles(source) == [["a.py", "b.py", "c.py"]]


def test_relative_imports_are_followed(tree):
    source = tree(room__init="from .a import x", room__a="from ..other import y", other="from .room import a")
    assert structure.circles(source) == [["other.py", "room/a.py"]]


def test_a_name_of_a_folder_itself_is_an_import_of_its_init_file(tree):
    source = tree(room__init="from pack.room.a import thing", room__a="from pack.room import other_thing")
    assert structure.circles(source) == [["room/__init__.py", "room/a.py"]]


def test_imports_for_type_checkers_close_no_circle(tree):
    text = """
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from pack.b import B
        """
    assert structure.circles(tree(a=text, b="from pack import a")) == []


def test_the_largest_circle_comes_first(tree):
    source = tree(
        a="import pack.b", b="import pack.a", c="import pack.d", d="import pack.e", e="import pack.c", f="import pack.c"
    )
    assert [len(group) for group in structure.circles(source)] == [3, 2]
    assert COUNTS["circles of imports"](source).number == 2
    assert COUNTS["files in the largest circle"](source).number == 3
    assert COUNTS["files in the largest circle"](tree(a="", c="")).number == 0


@pytest.mark.parametrize(
    "text",
    [
        "from pack.families.gan.modules import Module",
        "if name == 'gan':\n    pass",
        "print(f'{folder}/gan-cxr')",
        "GANModule = None",
        "class TinyGan: ...",
        "module.gan_options",
        "def f(*, gan=True): ...",
        "f(gan=1)",
        "TABLE = {'gan': 1}",
    ],
)
def test_a_family_is_named_outside_its_folder(tree, text):
    source = tree(a=text, families__gan__modules="")
    assert structure.families_outside(source) == ["a.py: gan"]


@pytest.mark.parametrize(
    "text",
    [
        '"""The gan family."""',
        'def f():\n    """The gan family."""\n    return 1  # gan',
        "class A:\n    field: int = 0\n    'Of the gan family.'",
        "import organ, vegan, gander",
        "cyclegan = 'stylegans'",
    ],
)
def test_docstrings_comments_and_longer_words_name_no_family(tree, text):
    assert structure.families_outside(tree(a=text, families__gan__modules="GAN = 1")) == []


def test_only_the_registry_and_the_zoo_may_name_families(tree):
    registry = "from pack.families import gan, vae\nFAMILIES: dict[str, str] = {'gan': gan.FAMILY}\n"
    files = {"zoo": "ZOO = {'gan-cxr': 1}", "families__gan__init": "", "families__vae__init": ""}
    assert structure.families_outside(tree(families__init=registry, **files)) == []
    source = tree(families__init=registry + "if name == 'gan': ...", families__vae__a="import pack.families.gan")
    assert structure.families_outside(source) == ["families/__init__.py: gan"]  # one family may build on another


def test_a_family_named_like_a_sampler_counts_where_it_is_imported(tree, monkeypatch):
    monkeypatch.setattr(structure, "OTHER_MEANINGS", ("ddpm",))
    files = {"a": "sampler = 'ddpm'", "b": "import pack.families.ddpm", "families__ddpm__init": ""}
    assert structure.families_outside(tree(**files)) == ["b.py: ddpm"]


PARTS = """
    @dataclass(frozen=True)
    class PartConfig:
        width: int = 1
        channels: int = 1

    @dataclass(frozen=True)
    class BaseConfig:
        layers: int = 2
        image_size: tuple[int, int] = (1, 1)
    """


def test_a_field_that_is_handed_to_a_part_is_a_repeated_one(tree):
    source = tree(
        nn=PARTS,
        families__gan__generator="""
            @dataclass(frozen=True)
            class GanConfig(BaseConfig):
                part_width: int = 1
                own: int = 2

                @property
                def part(self):
                    return PartConfig(width=2 * self.part_width, channels=self.channels)

            def build(config: GanConfig):
                return Network(replace(config.part, layers=config.layers), config.own)
            """,
    )
    found = {field.split()[0] for field in structure.repeated_fields(source)}
    assert found == {"GanConfig.part_width", "GanConfig.layers"}
    assert COUNTS["lines that hand config fields to a part"](source).number == 4


def test_a_config_that_holds_its_parts_repeats_no_field(tree):
    source = tree(
        nn=PARTS,
        families__gan__generator="""
            @dataclass(frozen=True)
            class GanConfig(BaseConfig):
                part: PartConfig = PartConfig(width=4)

                @classmethod
                def tiny(cls):
                    return cls(image_size=(16, 16), layers=1, part=PartConfig(width=1))

            class Generator:
                def __init__(self, config: GanConfig):
                    self.network = Network(config.part, config.layers)
            """,
    )
    assert structure.bridges(source) == []


def test_patch_discriminators_have_no_linear_layer(tree):
    source = tree(
        nn="""
            class PatchDiscriminator(nn.Module):
                def __init__(self):
                    self.last = nn.Conv2d(1, 1, 4)

            class MultiscaleDiscriminator(nn.Module):
                def __init__(self):
                    self.scales = [PatchDiscriminator() for _ in range(2)]
            """,
        families__gan__networks="""
            class Discriminator(nn.Module):
                def __init__(self):
                    self.convs = EqualisedConv(1, 1)
                    self.out = EqualisedLinear(1, 1)

            class DiscriminatorBlock(nn.Module):
                def __init__(self):
                    self.conv = EqualisedConv(1, 1)
            """,
        families__old__networks="""
            class Discriminator(nn.Module):
                def __init__(self, layers):
                    self.layers = nn.Sequential(*layers)
            """,
    )
    assert structure.patch_discriminators(source) == [
        "families/old/networks.py: Discriminator",
        "nn.py: PatchDiscriminator",
    ]


def test_casts_of_types_count_and_those_of_data_do_not(tree):
    source = tree(
        a="""
            x = cast("int", cast("float", y))
            z = typing.cast(int, y)
            table = frame.cast(int)
            """
    )
    assert structure.casts(source) == ["a.py:2", "a.py:2", "a.py:3"]


def test_overrides_of_published_that_do_more_than_cast_do_not_count(tree):
    source = tree(
        a="""
            class Casts:
                @property
                def published(self):
                    "The averaged generator."
                    return cast("Generator", super().published)

            class First:
                @property
                def published(self):
                    return cast("Generator", self.ema.module)

            class More:
                @property
                def published(self):
                    check(self)
                    found = 1
                    return cast("Generator", super().published)
            """
    )
    assert structure.casting_overrides(source) == ["a.py: Casts.published"]


def test_functions_that_refuse_images_out_of_range_are_checks(tree):
    source = tree(
        a="""
            class Model:
                def encode(self, images):
                    if images.min() < 0:
                        raise ValueError(f"images are {images.dtype}; give numbers in [0, 1]")

            def to_uint8(images):
                if not images.is_floating_point():
                    raise ValueError(f"images are {images.dtype}; expected floating point in [0, 1]")

            def boxes(found):
                if found < 0:
                    raise ValueError("boxes must lie in [0, 1]")
            """
    )
    assert structure.image_checks(source) == ["a.py: Model.encode"]


def test_sessions_have_noise_and_evaluation_mode(tree):
    source = tree(
        a="""
            @contextmanager
            def session(generator, seed, n):
                noise = NoiseSource(seed, range(n))
                with evaluating(generator), torch.inference_mode():
                    yield noise

            def encode(generator, images):
                with evaluating(generator):
                    return generator.encode(images)

            def search(generator, images):
                with torch.enable_grad(), evaluating(generator):
                    return NoiseSource(0, range(2))
            """
    )
    assert structure.sampling_sessions(source) == ["a.py: session"]


def test_lines_are_counted_by_folder(tree):
    source = tree(a="x = 1\n", families__gan__init="y = 1\nz = 2\n")
    assert COUNTS["lines outside the families"](source) == (1, ["gan: 2"])


def test_the_table_shows_counts_beside_limits(tree, capsys):
    assert structure.main(tree(a="import pack.b", b="import pack.a")) == 0
    printed = capsys.readouterr().out
    assert "2 files: a.py, b.py" in printed
    table = [[cell.strip() for cell in line.split("|")] for line in printed.splitlines() if "|" in line]
    assert table[:3] == [
        ["point", "count", "limit", "aim"],
        ["circles of imports", "1", str(LIMITS["circles of imports"].most), "2"],
        ["files in the largest circle", "2", str(LIMITS["files in the largest circle"].most), "2"],
    ]
    assert [row[0] for row in table[1:]] == list(LIMITS)


def test_the_table_fails_where_a_count_is_too_large(tree, monkeypatch):
    monkeypatch.setitem(LIMITS, "circles of imports", structure.Limit(0, 0))
    assert structure.main(tree(a="import pack.b", b="import pack.a")) == 1
