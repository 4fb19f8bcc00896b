"""The reader study over real HTTP; the page itself is tested in a browser in `test_study_page`."""

import json
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medgen.cli import main
from medgen.evaluation.study.design import DESIGNS, IMAGES_PER_TRIAL, Candidates, make_study
from medgen.evaluation.study.scoring import fleiss_kappa, score_study
from medgen.evaluation.study.server import exposure, make_server


def candidates(n=60, seed=0, origin="model", classes=2):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes if classes else None
    return Candidates(images=torch.rand(n, 1, 16, 16, generator=generator), labels=labels, origin=origin)


@pytest.fixture
def study(tmp_path):
    """A function from a design to the folder of a new study."""
    return lambda design="single", trials=20, **options: make_study(
        candidates(origin="real"), candidates(seed=1), tmp_path / design, design=design, trials=trials, **options
    )


@pytest.fixture
def serve():
    """A function from a study folder to the address of its server."""
    running = []

    def start(folder):
        server = make_server(folder, port=0)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


def post(url, **body):
    request = urllib.request.Request(f"{url}/api/answer", data=json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def key_of(folder):
    return {name: entry["kind"] for name, entry in json.loads((folder / "key.json").read_text())["images"].items()}


def answer_all(url, reader, choose):
    """Answer every question; `choose` maps the images of one to those that are called synthetic."""
    shown = get(f"{url}/api/next?reader={reader}")
    while "trial" in shown:
        chosen = choose(shown["images"])
        shown = post(url, reader=reader, trial=shown["trial"], synthetic=chosen, milliseconds=900)
    return shown


@pytest.mark.parametrize("design", DESIGNS)
def test_half_of_the_images_are_real_and_none_comes_twice(study, design):
    folder = study(design)
    trials = json.loads((folder / "study.json").read_text())["trials"]
    kinds = key_of(folder)
    images = [image for trial in trials for image in trial["images"]]
    assert len(trials) == 20
    assert len(set(images)) == len(images) == 20 * IMAGES_PER_TRIAL[design]
    assert sum(kinds[image] == "real" for image in images) * 2 == len(images)
    for trial in trials:
        if design in ("pair", "grid"):
            assert sum(kinds[image] == "real" for image in trial["images"]) * 2 == len(trial["images"])


def test_classes_are_balanced_between_real_and_synthetic(study):
    entries = json.loads((study() / "key.json").read_text())["images"].values()
    count = {(e["kind"], e["label"]): 0 for e in entries}
    for e in entries:
        count[e["kind"], e["label"]] += 1
    assert set(count.values()) == {5}


def test_nothing_a_reader_gets_says_what_is_real(study):
    folder = study()
    public = (folder / "study.json").read_text()
    assert "real" not in public
    assert "model" not in public
    for path in (folder / "images").iterdir():
        with Image.open(path) as picture:
            assert not picture.info
            assert (picture.mode, picture.size) == ("L", (16, 16))
        assert path.stem in public


def test_the_same_seed_draws_the_same_images_in_the_same_order_under_other_names(study, tmp_path):
    one = study(seed=3)
    other = make_study(candidates(origin="real"), candidates(seed=1), tmp_path / "other", trials=20, seed=3)

    def content(folder):
        entries = json.loads((folder / "key.json").read_text())["images"]
        trials = json.loads((folder / "study.json").read_text())["trials"]
        return [(entries[i]["kind"], entries[i]["row"]) for trial in trials for i in trial["images"]]

    assert content(one) == content(other)
    assert not key_of(one).keys() & key_of(other).keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"design": "double"}, "design is 'double'; use single, grid, pair, timed"),
        ({"trials": 7}, "trials is 7; use an even number"),
        ({"trials": 200}, "needs 50 real images of each class, but there are 30"),
    ],
)
def test_impossible_studies_are_refused(study, options, message):
    with pytest.raises(ValueError, match=message):
        study(**options)


def test_a_study_is_never_overwritten(study):
    study()
    with pytest.raises(FileExistsError, match="holds a study already"):
        study()


def test_a_reader_who_sees_everything_is_scored_perfect(study, serve):
    folder = study()
    kinds = key_of(folder)
    end = answer_all(serve(folder), "eagle", lambda images: [i for i in images if kinds[i] == "synthetic"])
    assert end == {"done": 20, "total": 20}
    score = score_study(folder)
    assert score.fake_identification_rate.value == 1
    assert score.error_rate.value == 0
    assert score.readers[0].seconds == 0.9
    assert set(score.by_class) == {0, 1}


@pytest.mark.slow
def test_guessing_is_near_one_half_and_two_who_agree_have_kappa_one(study, serve):
    folder = study(trials=40)
    url = serve(folder)
    for reader in ("mole", "bat"):
        answer_all(url, reader, lambda images: [i for i in images if int(i, 16) % 2])
    score = score_study(folder)
    assert 0.2 < score.error_rate.low < 0.5 < score.error_rate.high < 0.8 or 0.3 < score.error_rate.value < 0.7
    assert score.agreement == pytest.approx(1)


def test_a_study_goes_on_where_it_stopped_even_after_a_crash(study, serve):
    folder = study()
    url = serve(folder)
    shown = get(f"{url}/api/next?reader=ann")
    for _ in range(5):
        shown = post(url, reader="ann", trial=shown["trial"], synthetic=[], milliseconds=1)
    with (folder / "answers.jsonl").open("a") as file:
        file.write('{"reader": "ann", "tri')  # the machine died in the middle of a line
    again = serve(folder)
    resumed = get(f"{again}/api/next?reader=ann")
    assert resumed == shown
    assert resumed["done"] == 5
    assert post(again, reader="ann", trial=resumed["trial"], synthetic=[], milliseconds=1)["done"] == 6


def test_an_answer_sent_twice_counts_once(study, serve):
    folder = study()
    url = serve(folder)
    shown = get(f"{url}/api/next?reader=ann")
    for choice in ([], shown["images"]):
        post(url, reader="ann", trial=shown["trial"], synthetic=choice, milliseconds=1)
    (line,) = (folder / "answers.jsonl").read_text().splitlines()
    assert json.loads(line)["synthetic"] == []


def test_readers_have_orders_of_their_own(study, serve):
    url = serve(study())
    assert len({get(f"{url}/api/next?reader=reader{i}")["trial"] for i in range(8)}) > 2


@pytest.mark.parametrize(
    "path",
    ["/key.json", "/images/../key.json", "/images/%2e%2e/key.json", "/answers.jsonl", "/server.py", "/images/x.png"],
)
def test_only_the_page_and_the_images_are_served(study, serve, path):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(serve(study()) + path)


@pytest.mark.parametrize(
    "body",
    [
        {"reader": "ann", "trial": "no", "synthetic": [], "milliseconds": 1},
        {"reader": "a" * 41, "trial": "no", "synthetic": [], "milliseconds": 1},
        {"reader": "ann"},
        {"reader": "<script>", "trial": "no", "synthetic": [], "milliseconds": 1},
    ],
)
def test_answers_that_make_no_sense_are_refused_and_not_kept(study, serve, body):
    folder = study()
    with pytest.raises(urllib.error.HTTPError, match="400"):
        post(serve(folder), **body)
    assert not (folder / "answers.jsonl").exists()


@pytest.mark.parametrize("milliseconds", [-1, float("inf"), "soon"])
def test_times_that_make_no_sense_are_refused_and_not_kept(study, serve, milliseconds):
    folder = study()
    url = serve(folder)
    trial = get(url + "/api/next?reader=ann")["trial"]
    with pytest.raises(urllib.error.HTTPError, match="400"):
        post(url, reader="ann", trial=trial, synthetic=[], milliseconds=milliseconds)
    assert not (folder / "answers.jsonl").exists()
    post(url, reader="ann", trial=trial, synthetic=[], milliseconds=5)
    assert (folder / "answers.jsonl").exists()


def test_timed_studies_get_faster_for_those_who_do_well():
    kinds = {"a": "real", "b": "synthetic"}
    right = {"images": ["b"], "synthetic": ["b"]}
    wrong = {"images": ["a"], "synthetic": ["a"]}
    assert exposure([], kinds) == 500
    assert exposure([right] * 3, kinds) == 470
    assert exposure([right, right, wrong, right], kinds) == 510
    assert exposure([right] * 300, kinds) == 100
    assert exposure([wrong] * 300, kinds) == 1000


def test_fleiss_kappa_of_the_textbook():
    # Fleiss 1971, the example of Wikipedia: 10 subjects, 14 raters, 5 categories
    table = np.array(
        [
            [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
            [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
        ]
    )  # fmt: skip
    assert fleiss_kappa(table) == pytest.approx(0.210, abs=5e-4)


def test_a_reader_who_stopped_early_does_not_decide_the_agreement():
    random = np.random.default_rng(0)
    two = np.stack([random.multinomial(2, [0.5, 0.5]) for _ in range(400)])
    stopped = two.copy()
    stopped[0] = [0, 3]  # one image has a third vote, and all three agree
    assert fleiss_kappa(two) == pytest.approx(0, abs=0.12)
    assert fleiss_kappa(stopped) == pytest.approx(fleiss_kappa(two), abs=0.02)
    alone = np.vstack([two, [[1, 0]] * 50])  # images that one reader has judged say nothing
    assert fleiss_kappa(alone) == fleiss_kappa(two)
    assert np.isnan(fleiss_kappa(np.array([[1, 0], [0, 1]])))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--design", "triple"], "design is 'triple'; use single"),
        (["--trials", "3"], "trials is 3; use an even number"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_anything_is_opened(options, text, tmp_path, capsys):
    where = [
        "--data",
        "medgen.data.TableDataModule",
        "--data.csv",
        "no.csv",
        "--data.image_size",
        "8",
        "--out",
        str(tmp_path / "study"),
    ]
    assert main(["study", "make", "no-such-model", *where, *options]) == 1
    assert text in capsys.readouterr().err


def test_a_port_there_is_not_is_refused(tmp_path, capsys):
    assert main(["study", "serve", str(tmp_path), "--port", "99999"]) == 1
    assert "port is 99999; use one from 1 to 65535" in capsys.readouterr().err


def test_a_study_without_answers_says_what_to_do(study):
    with pytest.raises(ValueError, match="has no answers yet; medgen study serve"):
        score_study(study())


def test_a_folder_without_a_study_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="holds no study"):
        make_server(tmp_path, port=0)
