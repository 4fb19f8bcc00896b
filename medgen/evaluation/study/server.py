"""Server of a reader study; answers are appended to a file as they come."""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from medgen.evaluation.study.design import ANSWERS_FILE, IMAGE_FOLDER, KEY_FILE, STUDY_FILE

_NAME = re.compile(r"[\w .@-]{1,40}")
_LARGEST_BODY = 4096
SHORTEST_MS, LONGEST_MS, FIRST_MS = 100, 1000, 500


class StudyError(ValueError):
    """A request that cannot be answered; the message is shown to the reader."""


@dataclass(frozen=True)
class Study:
    """Questions, key and answers in a study folder, the target folder of `make_study`."""

    folder: Path

    @cached_property
    def content(self) -> dict[str, Any]:
        """Questions and design.

        Raises:
            FileNotFoundError: If the folder holds no study.
        """
        path = self.folder / STUDY_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{self.folder} holds no study ({STUDY_FILE}); make one with medgen study make")
        return cast("dict[str, Any]", json.loads(path.read_text()))

    @cached_property
    def trials(self) -> dict[str, list[str]]:
        """Images of each question, by its id."""
        return {trial["id"]: trial["images"] for trial in self.content["trials"]}

    @cached_property
    def images(self) -> frozenset[str]:
        """All images of the study."""
        return frozenset(image for images in self.trials.values() for image in images)

    @cached_property
    def key(self) -> dict[str, dict[str, Any]]:
        """Kind, origin, row and label of each image; never sent."""
        return cast("dict[str, dict[str, Any]]", json.loads((self.folder / KEY_FILE).read_text())["images"])

    @cached_property
    def kinds(self) -> dict[str, str]:
        """``real`` or ``synthetic`` for each image."""
        return {image: entry["kind"] for image, entry in self.key.items()}

    @cached_property
    def lock(self) -> threading.Lock:
        """Held while answers are read and appended."""
        return threading.Lock()

    def answers(self, reader: str | None = None) -> list[dict[str, Any]]:
        """All answers, or those of one reader, in order; an incomplete line after a crash is left out."""
        path = self.folder / ANSWERS_FILE
        found = []
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                answer = json.loads(line)
            except json.JSONDecodeError:
                continue
            if reader is None or answer["reader"] == reader:
                found.append(answer)
        return found

    def next_trial(self, reader: str) -> dict[str, Any]:
        """Next question of a reader, and the progress; without ``images`` at the end."""
        answers = self.answers(reader)
        done = {answer["trial"] for answer in answers}
        order = sorted(self.trials)
        random.Random(f"{reader}|{order[0]}").shuffle(order)  # each reader has an order of their own
        left = [trial for trial in order if trial not in done]
        progress: dict[str, Any] = {"done": len(done), "total": len(order)}
        if not left:
            return progress
        shown: dict[str, Any] = {"trial": left[0], "images": self.trials[left[0]]}
        if self.content["design"] == "timed":
            shown["milliseconds"] = exposure(answers, self.kinds)
        return progress | shown

    def record(self, reader: str, trial: str, choice: list[str], milliseconds: int) -> None:
        """Append an answer: the images called synthetic, one in pairs, and milliseconds from the images to the answer.

        Raises:
            StudyError: If the question or an image is unknown, or a choice is not possible.
        """
        images = self.trials.get(trial)
        if images is None or not set(choice) <= set(images) or len(set(choice)) != len(choice):
            raise StudyError("no such question or image")
        if self.content["design"] == "pair" and len(choice) != 1:
            raise StudyError("choose one of the two images")
        with self.lock:
            before = self.answers(reader)
            if any(answer["trial"] == trial for answer in before):
                return  # sent twice, by a reload or a second window: the first one counts
            line = {
                "reader": reader,
                "trial": trial,
                "images": images,
                "synthetic": choice,
                "milliseconds": milliseconds,
            }
            if self.content["design"] == "timed":
                line["exposure"] = exposure(before, self.kinds)
            line["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            with (self.folder / ANSWERS_FILE).open("a+") as file:
                file.seek(0, os.SEEK_END)
                if file.tell():
                    file.seek(file.tell() - 1)
                    if file.read(1) != "\n":  # a crash cut the last line off
                        file.write("\n")
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())


def exposure(answers: Sequence[dict[str, Any]], kinds: Mapping[str, str]) -> int:
    """Milliseconds that the next image of a timed study is shown, after a reader's answers so far.

    In this staircase three right answers in a row take 30 ms off, and a wrong one adds 10 ms, within 100 to 1000 ms.

    Source: Zhou et al. 2019, "HYPE: a benchmark for human eye perceptual evaluation of generative models", section 2.3.
    """
    shown, streak = FIRST_MS, 0
    for answer in answers:
        if is_right(answer, kinds):
            streak += 1
            if streak == 3:
                shown, streak = max(SHORTEST_MS, shown - 30), 0
        else:
            shown, streak = min(LONGEST_MS, shown + 10), 0
    return shown


def is_right(answer: Mapping[str, Any], kinds: Mapping[str, str]) -> bool:
    """Whether exactly the synthetic images were called synthetic."""
    return {image for image in answer["images"] if kinds[image] == "synthetic"} == set(answer["synthetic"])


_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".png": "image/png"}


# The page loads nothing from anywhere else, and tells no one where it is; data: is for its empty icon, since browsers
# ask for one and log an error when there is none.
_POLICY = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'"


class _Handler(BaseHTTPRequestHandler):
    """Request handler of the page, its images, and three calls."""

    study: Study
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        name = url.path.rpartition("/")[2] or "index.html"
        if url.path == "/api/next":
            self._answer(lambda: self.study.next_trial(_reader(parse_qs(url.query).get("reader", [""])[0])))
        elif url.path == f"/{IMAGE_FOLDER}/{name}" and name.removesuffix(".png") in self.study.images:
            self._send((self.study.folder / IMAGE_FOLDER / name).read_bytes(), ".png")
        elif url.path in ("/", "/index.html", "/study.js", "/study.css"):
            page = files("medgen.evaluation.study").joinpath("page", name)
            self._send(page.read_bytes(), Path(name).suffix)
        elif url.path == "/api/study":
            self._answer(lambda: {key: self.study.content[key] for key in ("design", "grey", "size")})
        else:
            self._send(b"not found", ".html", HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.path != "/api/answer" or length > _LARGEST_BODY:
            self.close_connection = True
            self._send(b"not found", ".html", HTTPStatus.NOT_FOUND)
            return
        body = self.rfile.read(length)

        def record() -> dict[str, Any]:
            try:
                sent = json.loads(body)
                name, trial = sent["reader"], str(sent["trial"])
                choice, milliseconds = [str(image) for image in sent["synthetic"]], int(sent["milliseconds"])
                if milliseconds < 0:
                    raise ValueError(milliseconds)
            except (KeyError, TypeError, ValueError, OverflowError) as error:  # also of JSON
                raise StudyError("an answer has reader, trial, synthetic and milliseconds from 0 on") from error
            reader = _reader(name)
            self.study.record(reader, trial, choice, milliseconds)
            return self.study.next_trial(reader)

        self._answer(record)

    def _answer(self, call: Callable[[], dict[str, Any]]) -> None:
        try:
            content, status = call(), HTTPStatus.OK
        except ValueError as error:
            content, status = {"error": str(error)}, HTTPStatus.BAD_REQUEST
        self._send(json.dumps(content).encode(), ".json", status)

    def _send(self, content: bytes, suffix: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", _TYPES.get(suffix, "application/json"))
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Suppress the log of requests."""


def _reader(name: str) -> str:
    name = " ".join(str(name).split())
    if not _NAME.fullmatch(name):
        raise StudyError("give a name of up to 40 letters, digits, spaces, dots or dashes")
    return name


def make_server(folder: str | Path, *, host: str = "127.0.0.1", port: int = 8000) -> ThreadingHTTPServer:
    """Create a server for a study folder; call ``serve_forever``. By default only this machine can reach it.

    Raises:
        FileNotFoundError: If the folder holds no study.
        OSError: If the port is taken.
    """
    study = Study(Path(folder))
    study.content, study.kinds  # noqa: B018 - read now, so that a wrong folder is refused before anyone connects
    return ThreadingHTTPServer((host, port), type("StudyHandler", (_Handler,), {"study": study}))
