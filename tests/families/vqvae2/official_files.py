"""Files in the layout of rosinality/vq-vae-2-pytorch, made of our generators: what `convert.py` does, backwards."""

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from medgen.families.vqvae2.generator import VQVAE2Generator

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

_AUTOENCODER: tuple[Rule, ...] = (
    (r"^encode_(t|b)(?:op|ottom)\.", r"enc_\1.blocks."),
    (r"^decode_top\.", "dec_t.blocks."),
    (r"^decode_both\.", "dec.blocks."),
    (r"^to_(t|b)(?:op|ottom)\.", r"quantize_conv_\1."),
    (r"^(t|b)(?:op|ottom)_codes\.", r"quantize_\1."),
    (r"^upsample_top\.", "upsample_t."),
    (r"\.widen\.", ".conv.1."),
    (r"\.narrow\.", ".conv.3."),
    (r"\.codebook$", ".embed"),
    (r"\.counts$", ".cluster_size"),
    (r"\.sums$", ".embed_avg"),
)
_PRIOR: tuple[Rule, ...] = (
    (r"^above\.", "horizontal.conv.conv."),
    (r"^left\.", "vertical.conv.conv."),
    (r"\.residual\.(\d+)\.(first|second)\.", r".resblocks.\1.\2.conv.conv."),
    (r"\.residual\.(\d+)\.condition\.", r".resblocks.\1.condition.conv."),
    (r"\.(key|query)_block\.(first|second)\.", r".\1_resblock.\2.conv."),
    (r"\.merge\.(first|second)\.", r".out_resblock.\1.conv."),
    (r"\.merge\.auxiliary\.", ".out_resblock.aux_conv.conv."),
    (r"\.attention\.", ".causal_attention."),
    (r"\.place\.", ".out.conv."),
    (r"^condition\.stem\.", "cond_resnet.blocks.0.conv."),
    (
        r"^condition\.blocks\.(\d+)\.(first|second)\.",
        lambda found: f"cond_resnet.blocks.{int(found[1]) + 1}.{found[2]}.conv.",
    ),
    (r"^last\.(\d+)\.(first|second)\.", r"out.\1.\2.conv."),
    (r"\.first\.", ".conv1."),
    (r"\.second\.", ".conv2."),
)


def official_weights(generator: VQVAE2Generator) -> dict[str, dict[str, Tensor]]:
    """The official state dicts of the ``autoencoder``, the ``top`` and the ``bottom`` prior."""
    first = {_renamed(name, _AUTOENCODER): value for name, value in generator.autoencoder.state_dict().items()}
    state = {
        "autoencoder": {n: value.T.contiguous() if "embed" in n else value for n, value in first.items()},
    }
    for level in ("top", "bottom"):
        prior = getattr(generator, level)
        logits: Rule = (r"^to_logits\.", f"out.{prior.config.output_blocks + 1}.conv.")
        renamed = {_renamed(name, (*_PRIOR, logits)): value for name, value in prior.state_dict().items()}
        state[level] = {"background": background(*prior.size)} | {
            name: value.flatten(1) if "causal_attention" in name and "weight" in name else value
            for name, value in renamed.items()
        }
    return state


def background(height: int, width: int) -> Tensor:
    """The buffer in which an official prior keeps row and column of every place, (1, 2, H, W)."""
    rows = ((torch.arange(height).float() - height / 2) / height)[:, None].expand(height, width)
    columns = ((torch.arange(width).float() - width / 2) / width)[None].expand(height, width)
    return torch.stack([rows, columns])[None]


def write_files(
    folder: Path, weights: Mapping[str, Mapping[str, Tensor]], *, prefix: str = "", args: object = None
) -> dict[str, Path]:
    """The three files, as the official scripts write them.

    Args:
        folder: Where to write.
        weights: Official state dicts, see `official_weights`.
        prefix: What stands before all names.
        args: Arguments of training; None for those of the official script; ``bare`` for priors without.
    """
    args = args or argparse.Namespace(batch=32, hier="top", lr=3e-4, dropout=0.1, sched=None)
    paths = {
        "autoencoder": folder / "vqvae_560.pt",
        "top": folder / "pixelsnail_top.pt",
        "bottom": folder / "pixelsnail_bottom.pt",
    }
    for part, path in paths.items():
        state = {f"{prefix}{name}": value for name, value in weights[part].items()}
        torch.save(state if part == "autoencoder" or args == "bare" else {"model": state, "args": args}, path)
    return paths


def _renamed(name: str, rules: tuple[Rule, ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
