import numpy as np
import pytest
import torch
from PIL import Image

from medgen.families.spade.masks import checked_masks, masks_of_files


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bool])
def test_maps_of_any_whole_type_are_taken(dtype):
    masks = torch.tensor([[[0, 1], [1, 0]]]).to(dtype)
    assert torch.equal(checked_masks(masks, 2, (2, 2)), masks.long())
    assert checked_masks(masks[:, None], 2, (2, 2)).shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            torch.tensor([[[0, 255], [255, 0]]]),
            r"mask holds the values 0, 255; .* 0 to 2; write class numbers, such as 0 and 1, instead",
        ),
        (torch.tensor([[[0, 3], [4, 7]]]), "mask holds the values 0, 3, 4, 7; this generator has the classes 0 to 2"),
        (torch.tensor([[[0, -1], [0, 0]]]), "mask holds the values -1, 0"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), r"mask has shape \(1, 2, 3\); expected \(n, 2, 2\)"),
        (
            torch.zeros(4, 3, 2, 2, dtype=torch.int64),
            r"expected \(n, 2, 2\), .*a channel for each class: take mask.argmax\(1\)",
        ),
        (torch.zeros(4, 2, 2, 3, dtype=torch.int64), r"a channel for each class: take mask.argmax\(-1\)"),
        (torch.zeros(1, 2, 2), "mask is of type torch.float32; give whole class numbers"),
    ],
)
def test_what_is_no_map_of_the_classes_is_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        checked_masks(masks, 3, (2, 2))


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        Image.fromarray(np.full((4, 6), number, dtype=np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no map")
    return tmp_path


def test_images_take_the_files_of_a_folder_in_turn_by_their_number(folder):
    assert masks_of_files(folder, range(2, 6))[:, 0, 0].tolist() == [2, 0, 1, 2]
    assert masks_of_files(folder / "1.png", range(2)).shape == (2, 4, 6)


def test_a_folder_without_maps_and_an_absent_file_are_named(tmp_path):
    for path, what in ((tmp_path, "a folder without label maps"), (tmp_path / "absent.png", "not there")):
        with pytest.raises(FileNotFoundError, match=f"mask {path} is {what}"):
            masks_of_files(path, range(1))


def test_arrays_of_numpy_are_label_maps_and_lists_of_files_are_not():
    maps = np.array([[[0, 1], [2, 0]]], dtype=np.uint16)
    assert checked_masks(maps, 3, (2, 2)).tolist() == maps.tolist()
    with pytest.raises(ValueError, match=r"mask is \['a.png'\]; give class numbers as a tensor or array"):
        checked_masks(["a.png"], 3, (2, 2))


def test_files_of_different_sizes_are_refused(folder):
    Image.fromarray(np.zeros((5, 6), dtype=np.uint8)).save(folder / "3.png")
    with pytest.raises(ValueError, match=r"different sizes: \(4, 6\), \(5, 6\)"):
        masks_of_files(folder, range(4))
