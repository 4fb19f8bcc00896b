import pytest
import torch

from medgen.evaluation.sets import (
    GeneratedImages,
    ImageFolder,
    RealImages,
    batches,
    matched_labels,
    open_source,
    translated_labels,
)
from medgen.images import save_images
from medgen.labels import LabelSpace
from medgen.sampling import SamplingRun, sample_to_folder


def test_a_table_without_the_columns_is_refused_by_name(tmp_path):
    save_images(torch.rand(2, 1, 8, 8), tmp_path)
    (tmp_path / "samples.csv").write_text("image,label\n000000.png,a\n")
    with pytest.raises(ValueError, match="has the columns image, label; it needs file and label"):
        ImageFolder(tmp_path, channels=1)


def test_labels_of_the_same_number_are_each_taken_once():
    labels = torch.tensor([1, 0, 1, 2, 0, 0])
    assert sorted(matched_labels(labels, 6).tolist()) == sorted(labels.tolist())


@pytest.mark.parametrize("n", [3, 10, 37, 1000])
def test_each_class_comes_within_one_image_of_its_share(n):
    labels = torch.tensor([0] * 70 + [1] * 29 + [2])
    counts = matched_labels(labels, n).bincount(minlength=3)
    assert ((counts - torch.tensor([0.70, 0.29, 0.01]) * n).abs() <= 1).all()


def test_combinations_of_findings_keep_their_shares():
    labels = torch.tensor([[1.0, 1.0]] * 30 + [[0.0, 1.0]] * 70)
    matched = matched_labels(labels, 10)
    assert matched.shape == (10, 2)
    assert matched.mean(0).tolist() == pytest.approx([0.3, 1.0])


def test_unknown_labels_are_left_out():
    assert matched_labels(torch.tensor([-1, 1, -1]), 3).tolist() == [1, 1, 1]
    assert matched_labels(torch.tensor([[torch.nan, 1.0], [0.0, 1.0]]), 2).tolist() == [[0, 1], [0, 1]]


def test_a_reference_without_a_known_label_is_refused():
    with pytest.raises(ValueError, match="no image with a known label"):
        matched_labels(torch.tensor([-1, -1]), 2)


def test_classes_are_translated_by_name():
    data, model = LabelSpace("single", ("b", "a")), LabelSpace("single", ("a", "b", "c"))
    assert translated_labels(torch.tensor([0, 1, 1]), data, model).tolist() == [1, 0, 0]


def test_a_class_the_model_lacks_is_refused():
    data, model = LabelSpace("single", ("a", "z")), LabelSpace("single", ("a", "b"))
    with pytest.raises(ValueError, match=r"data's labels \(single: a, z\) are not the model's \(single: a, b\)"):
        translated_labels(torch.tensor([0]), data, model)


def test_real_images_span_several_splits_in_order(datamodule):
    real = RealImages(datamodule, "val+test")
    assert len(real) == 40
    separately = torch.cat(
        [
            torch.stack([item["image"] for item in map(datamodule.dataset(s).__getitem__, range(20))])
            for s in ("val", "test")
        ]
    )
    assert torch.equal(torch.cat(list(batches(real, range(40), 7))), separately)
    assert real.labels.tolist() == [*datamodule.dataset("val").labels, *datamodule.dataset("test").labels]


def test_an_unknown_split_is_refused(datamodule):
    with pytest.raises(ValueError, match="split 'valid' is unknown"):
        RealImages(datamodule, "valid")


def test_real_features_are_made_once(datamodule, network):
    first = RealImages(datamodule, "val").features(network)
    network.network = torch.nn.Module()  # cannot be called
    again = RealImages(datamodule, "val").features(network)
    assert torch.equal(first, again)


def test_features_of_other_weights_are_made_anew(datamodule, network):
    first = RealImages(datamodule, "val").features(network)
    del network.fingerprint
    network.mean += 0.1
    assert not torch.equal(first, RealImages(datamodule, "val").features(network))


def test_generated_images_do_not_depend_on_how_they_are_sliced(generator):
    images = GeneratedImages(generator, 7, torch.tensor([0, 1, 0, 1, 1, 0, 1]), seed=3, options={})
    assert torch.equal(torch.cat([images[0:2], images[2:3], images[3:7]]), images[0:7])


def test_unknown_sampling_options_are_refused_before_sampling(generator):
    with pytest.raises(ValueError, match="stepz"):
        GeneratedImages(generator, 2, None, seed=0, options={"stepz": 3})


def test_a_folder_of_samples_gives_its_images_and_labels(generator, tmp_path):
    sample_to_folder(generator, 6, tmp_path, SamplingRun(seed=0, labels=("dark", "bright", "bright")), progress=False)
    folder = open_source(tmp_path, channels=1)
    assert isinstance(folder, ImageFolder)
    assert folder[0:6].shape == (6, 1, 8, 8)
    drawn = generator.sample(6, [0, 1, 1, 0, 1, 1], seed=0)
    torch.testing.assert_close(folder[0:6], drawn, rtol=0, atol=0.5 / 255 + 1e-6)
    assert folder.labels(generator.label_space).tolist() == [0, 1, 1, 0, 1, 1]


def test_a_folder_without_a_table_gives_all_its_pictures(tmp_path):
    images = torch.rand(5, 3, 8, 8).mul(255).round() / 255
    save_images(images, tmp_path)
    folder = ImageFolder(tmp_path, channels=3)
    torch.testing.assert_close(folder[1:4], images[1:4])
    assert folder.labels(LabelSpace("single", ("a", "b"))) is None


def test_images_of_different_sizes_are_refused_by_name(tmp_path):
    save_images(torch.rand(1, 1, 8, 8), tmp_path)
    save_images(torch.rand(1, 1, 9, 8), tmp_path, first_index=1)
    with pytest.raises(ValueError, match=r"000001\.png is 9x8 pixels, others of the folder are 8x8"):
        ImageFolder(tmp_path, channels=1)[0:2]


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no image"):
        open_source(tmp_path, channels=1)
