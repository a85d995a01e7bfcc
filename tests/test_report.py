from __future__ import annotations

import html.parser
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import sklearn.metrics
from sklearn.calibration import calibration_curve

from fabricate import make_run
from pellucid import readings
from pellucid.errors import RunError
from pellucid.predictions import Predictions
from pellucid.readings import Curve
from pellucid.report import charts, content, pictures, render, settings, template, write_report
from pellucid.run import DataProblem, Measurement, rounded
from pellucid.views import bundle

HOSTILE = "<script>alert(1)</script>"


class Page(html.parser.HTMLParser):
    """What a page is made of: its tags with attributes, its scripts and data as (type, text), and its text outside of these and of style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.scripts: list[tuple[str | None, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br", "hr", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            self.scripts.append((self.named("script")[-1].get("type"), data))
        elif "style" not in self.open:
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


# ── numbers from predictions ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def predictions() -> Predictions:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 200)
    logits = random.normal(size=(200, 5)).astype(np.float32)
    logits[np.arange(200), labels] += 1.0
    logits[:, 3] -= 50.0  # class 3 is never predicted, class 4 has no sample
    return Predictions([f"{i}.jpg" for i in range(200)], labels, logits)


def test_class_numbers_and_confusion_agree_with_sklearn(predictions: Predictions) -> None:
    reading = content.read_predictions(predictions, list("abcde"), split="val", seed=1)
    predicted = predictions.logits.argmax(axis=1)
    assert np.array_equal(reading.confusion, sklearn.metrics.confusion_matrix(predictions.labels, predicted, labels=range(5)))
    expected = sklearn.metrics.precision_recall_fscore_support(predictions.labels, predicted, labels=range(5), zero_division=np.nan)
    found = [[getattr(row, name).value for row in reading.rows] for name in ("precision", "recall", "f1")]
    assert np.allclose(found[:2], expected[:2], equal_nan=True)
    seen = expected[3] > 0
    assert np.allclose(np.array(found[2])[seen], expected[2][seen])
    assert [row.n for row in reading.rows] == expected[3].tolist()
    assert reading.accuracy.value == sklearn.metrics.accuracy_score(predictions.labels, predicted)


def test_a_class_never_predicted_has_no_precision_and_one_without_samples_no_recall(predictions: Predictions) -> None:
    rows = content.read_predictions(predictions, list("abcde"), split="val", seed=1).rows
    assert (str(rows[3].precision), str(rows[3].recall), str(rows[3].f1)) == ("n/a", "0.0000", "0.0000")
    assert str(rows[4].recall) == "n/a"


def test_calibration_agrees_with_its_definition_and_with_sklearn() -> None:
    random = np.random.default_rng(1)
    confidence = np.concatenate([random.random(500), [0.0, 1.0, 0.2, 0.4]])
    right = random.random(504) < confidence**2
    found = readings.calibrate(confidence, right, split="val", seed=1)
    error = 0.0
    for b in range(15):
        inside = [i for i, c in enumerate(confidence) if b / 15 <= c < (b + 1) / 15 or (b == 14 and c == 1.0)]
        if inside:
            error += len(inside) / 504 * abs(sum(right[i] for i in inside) / len(inside) - sum(confidence[i] for i in inside) / len(inside))
    assert found.error.value == pytest.approx(error, abs=1e-12)
    assert sum(found.counts) == 504
    inner = readings.calibrate(confidence[:500], right[:500], split="val", seed=1)  # scikit-learn closes its bins on the other side
    accuracies, confidences = calibration_curve(right[:500], confidence[:500], n_bins=15)
    assert np.allclose(inner.accuracies, accuracies)
    assert np.allclose(inner.confidences, confidences)


def test_most_confused_pairs_are_sorted_and_leave_out_the_right_ones() -> None:
    confusion = np.array([[90, 3, 0], [7, 50, 3], [0, 0, 20]])
    assert readings.most_confused(confusion, 15) == [(1, 0, 7), (0, 1, 3), (1, 2, 3)]
    assert readings.most_confused(confusion, 1) == [(1, 0, 7)]


def test_mistakes_are_the_wrong_ones_surest_first(predictions: Predictions) -> None:
    reading = content.read_predictions(predictions, list("abcde"), split="val", seed=1, num_mistakes=7)
    probabilities = predictions.probabilities()
    wrong = sorted((i for i in range(200) if probabilities[i].argmax() != predictions.labels[i]), key=lambda i: -probabilities[i].max())
    assert [m.index for m in reading.mistakes] == wrong[:7]
    assert reading.num_mistakes == len(wrong)


# ── charts and curves ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.31, 2.3), (1e-6, 3e-4), (0.5, 0.5), (0.0, 0.0), (-3.0, 12345.0), (0.91, 0.93), (1e-30, 2e-30)])
def test_ticks_are_round_even_and_enclose_the_data(low: float, high: float) -> None:
    found = charts.ticks(low, high)
    steps = np.diff(found)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 8
    assert np.allclose(steps, steps[0], rtol=1e-6)
    assert f"{steps[0]:.0e}"[0] in "125"
    assert np.isclose(float(f"{steps[0]:.0e}"), steps[0])


def test_ticks_of_an_infinite_range_are_refused() -> None:
    with pytest.raises(ValueError, match="finite low <= high"):
        charts.ticks(0.0, float("inf"))


def test_a_curve_stands_where_its_axis_says() -> None:
    drawn = str(charts.line_chart([Curve("train", [0, 10], [0.0, 1.0])], title="T", x_label="epoch", y_label="accuracy", unit="fraction"))
    path = re.search(r'<path d="M([\d.]+),([\d.]+)L([\d.]+),([\d.]+)"', drawn)
    assert path is not None
    at = {text: (float(x), float(y)) for x, y, text in re.findall(r'class="tick" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]+)<', drawn)}
    x0, y0, x1, y1 = map(float, path.groups())
    assert (x1, y1 + 4) == pytest.approx((at["10"][0], at["1"][1]), abs=0.11)
    assert y0 > y1
    assert x0 < x1


def test_a_gap_breaks_a_curve_and_nan_does_not_spoil_its_axis() -> None:
    curve = Curve("train", [1, 2, 3, 4, 5], [1.0, None, 0.8, float("nan"), 0.7])
    assert curve.pieces == [[(1, 1.0)], [(3, 0.8)], [(5, 0.7)]]
    drawn = str(charts.line_chart([curve], title="T", x_label="epoch", y_label="loss", unit="nats"))
    assert "nan" not in drawn.lower()
    assert drawn.count("<circle") == 3


def test_neighbouring_curves_differ_in_colour_and_dash() -> None:
    strokes = [str(charts.legend([Curve("x", [], [], i)])) for i in range(21)]
    assert len(set(strokes)) == 21
    for one, next_ in itertools.pairwise(strokes):
        assert re.search(r"line (s\d)", one)[1] != re.search(r"line (s\d)", next_)[1]  # type: ignore[index]
        assert re.search(r'dasharray="([^"]*)"', one)[1] != re.search(r'dasharray="([^"]*)"', next_)[1]  # type: ignore[index]


def test_a_long_curve_is_thinned_and_keeps_its_last_point() -> None:
    lines = [{"kind": "lr", "step": i, "lr": 1e-3} for i in range(12_345)]
    found = readings.learning_rate(lines)
    assert len(found.x) <= readings.MAX_POINTS + 1
    assert found.x[0] == 0
    assert found.x[-1] == 12_344


def test_names_in_charts_are_escaped() -> None:
    curve = Curve(HOSTILE, [1, 2], [0.5, 0.6])
    drawn = (
        charts.line_chart([curve], title=HOSTILE, x_label='"><b>', y_label=HOSTILE, unit="nats")
        + charts.legend([curve])
        + charts.bar_strip([3], [HOSTILE], label='">')
    )
    assert "<script" not in drawn
    assert "<b>" not in drawn
    assert 'aria-label="">' not in drawn


# ── settings, pictures, templates ────────────────────────────────────────────────────────────────────────────────


def test_settings_show_every_leaf_and_mark_those_that_differ_from_their_default(tmp_path: Path) -> None:
    groups = {group.name: {s.key: s for s in group.settings} for group in settings.groups(make_run(tmp_path / "r").recipe)}
    assert groups["augment"]["horizontal_flip"].changed
    assert groups["augment"]["horizontal_flip"].default == "0.0"
    assert not groups["augment"]["vertical_flip"].changed
    assert groups["model"]["name"].changed
    assert groups["model"]["name"].default is None
    assert not groups["train.phases.0.optimizer"]["eps"].changed
    assert groups["train.phases.0.optimizer.sam"]["rho"].value == "0.1"
    assert groups["train.phases.0.optimizer.sam"]["rho"].changed
    assert not groups["train.phases.0.optimizer.sam"]["adaptive"].changed, "the section is off by default, its values have defaults of their own"
    assert groups["recipe"]["seed"].value == "1"
    assert all(s.meaning for name, group in groups.items() for s in group.values() if name != "model.options")


def test_a_bare_float_is_refused_by_the_templates() -> None:
    page = template._environment().from_string("{{ value }}")
    assert page.render(value=Measurement("a", 0.123456, "fraction", "val", 1, 1, "")) == "0.1235"
    for value in (0.5, np.float64(0.5), np.float32(0.5)):
        with pytest.raises(TypeError, match="expected a Measurement"):
            page.render(value=value)


def test_matrix_picture_keeps_rows_as_labels_and_stays_small() -> None:
    import base64
    import io

    confusion = np.zeros((1000, 1000), dtype=np.int64)
    confusion[3, 900] = 7
    data = base64.b64decode(pictures.matrix(confusion).split(",")[1])
    alpha = np.asarray(PIL.Image.open(io.BytesIO(data)))[..., 3]
    assert alpha.shape == (334, 334)
    assert np.argwhere(alpha).tolist() == [[1, 300]]
    assert alpha[1, 300] == 255


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_report_is_one_small_offline_well_formed_file(tmp_path: Path, classes: int) -> None:
    run = make_run(tmp_path / "run", classes=[f"class {i}" for i in range(classes)], n=60 * min(classes, 20), skill=1.0, thumbnails=16)
    path = write_report(run)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert path == run.report_file
    assert path.stat().st_size < 5_000_000
    assert not page.open
    assert [script for kind, script in page.scripts if kind == "module"] == [bundle.script("report")]
    assert {kind for kind, _ in page.scripts} == {"module", "application/json"}
    assert [a["href"] for a in page.named("link")] == ["data:,"]
    addresses = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href", "srcset", "action", "data")]
    assert addresses
    assert all(str(value).startswith(("#", "data:")) for value in addresses)
    assert "url(" not in text
    assert "@import" not in text
    assert len(page.named("img")) == 16 + (classes > 20)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(a["href"])[1:] for a in page.named("a")} <= set(ids)


def test_report_reads_without_its_pictures(tmp_path: Path) -> None:
    page = Page(render(make_run(tmp_path / "run", skill=2.5, thumbnails=3)))
    assert all(attributes.get("alt") for attributes in page.named("img"))
    assert all(attributes.get("aria-label") or attributes.get("aria-hidden") for attributes in page.named("svg"))
    assert all(attributes.get("scope") for attributes in page.named("th"))
    assert len(page.named("h1")) == 1
    assert len(page.named("table")) == len(page.named("caption"))


def test_report_shows_every_number_as_it_was_reported(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", classes=list("abcdefgh"))
    text = Page(render(run)).text
    headline = run.record.measurements[0]
    assert headline.interval is not None
    assert f"{rounded(headline.interval[0])} – {rounded(headline.interval[1])}" in text
    for measurement in run.record.measurements:
        assert str(measurement) in text, measurement.key
    assert "95 % Wilson interval over 120 samples" in text


def test_report_is_a_function_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", thumbnails=2)
    assert render(run) == render(run)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    problems = [DataProblem("train", f"{HOSTILE}.jpg", "leak", "<img src=x onerror=alert(1)>", False)]
    run = make_run(
        tmp_path / "run",
        classes=["cat", HOSTILE],
        skill=1.0,
        notes=[f"took {HOSTILE}"],
        problems=problems,
        skipped=[HOSTILE],
        file='{i}"><b>.jpg',
        thumbnails=4,
    )
    page = Page(render(run))
    tags = {tag for tag, _ in page.tags}
    assert [script for kind, script in page.scripts if kind != "application/json"] == [bundle.script("report")]
    assert all(json.loads(script) for kind, script in page.scripts if kind == "application/json")
    assert "b" not in tags
    assert not [attributes for _, attributes in page.tags if "onerror" in attributes]
    assert HOSTILE in page.text
    assert f"took {HOSTILE}" in page.text


def test_notes_problems_and_left_out_files_are_named(tmp_path: Path) -> None:
    problems = [DataProblem("train", f"train/{i}.jpg", "wrong_extension", "is a PNG", False) for i in range(70)]
    text = Page(render(make_run(tmp_path / "run", notes=["micro-batch 4 of 16"], problems=problems, skipped=["train/broken.jpg"]))).text
    assert "micro-batch 4 of 16" in text
    assert "train/broken.jpg" in text
    assert "train/49.jpg" in text
    assert "train/50.jpg" not in text
    assert "the first 50 of 70" in text


def test_report_says_whether_the_run_was_verified(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert f"Not verified yet: pellucid verify {run.path}" in Page(render(run)).text
    found = {"result": "verified", "class": "bit-equal", "when": "2026-11-21", "lines": ["9 numbers equal"]}
    run.verify_file.write_text(json.dumps(found))
    text = Page(render(run)).text
    assert "Verified (bit-equal) on 2026-11-21" in text
    assert "9 numbers equal" in text
    run.verify_file.write_text(json.dumps({**found, "result": "mismatch", "lines": ["val/accuracy differs"]}))
    text = Page(render(run)).text
    assert "mismatch" in text
    assert "val/accuracy differs" in text
    assert "Verified (" not in text


def test_a_changed_verification_file_is_an_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.verify_file.write_text('{"result": "fine"}')
    with pytest.raises(RunError, match=r"verify\.json: expected a result that is verified or mismatch.*pellucid verify"):
        render(run)


def test_an_interrupted_run_shows_what_there_is(tmp_path: Path) -> None:
    page = Page(render(make_run(tmp_path / "run", status="interrupted", mixup=True)))
    assert "no number yet" in page.text
    assert "interrupted at epoch 3, step 12 of 24" in page.text
    assert "Not recorded" in page.text
    assert "Loss" in page.text
    assert "Confusion" not in page.text


def test_a_run_without_mistakes_says_so(tmp_path: Path) -> None:
    text = Page(render(make_run(tmp_path / "run", skill=60.0))).text
    assert "None: all 120 samples of val were predicted as labelled." in text
    assert "Nothing was confused." in text


def test_a_mistake_without_a_picture_and_a_damaged_one_say_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", skill=1.0, thumbnails=2)
    next(iter(sorted((run.thumbnails / "val").iterdir()))).write_bytes(b"RIFF")
    text = Page(render(run)).text
    assert "no picture was kept" in text
    assert "picture cannot be read" in text


def test_predictions_that_contradict_the_stated_accuracy_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "the run states" not in render(run)
    record = run.record
    record.measurements[0] = Measurement("accuracy", 0.5, "fraction", "val", 120, 1, "by hand")
    run.write_record(record)
    assert "the run states 0.5000" in Page(render(run)).text


def test_a_finished_run_that_lost_files_says_which(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run.path / "environment.json").unlink()
    run.predictions_file("val").unlink()
    text = Page(render(run)).text
    assert "environment.json is missing" in text
    assert "predictions of val are missing" in text


def test_predictions_of_other_classes_are_an_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.write_predictions("val", Predictions(["a"], np.array([0]), np.zeros((1, 4), dtype=np.float32)), list("abcd"))
    with pytest.raises(RunError, match=r"expected logits of shape \(1, 3\).*got \(1, 4\)"):
        render(run)


def test_report_and_compare_need_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    make_run(tmp_path / "run", thumbnails=2)
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['matplotlib'] = None\n"
        "from pellucid.run import Run; from pellucid.report import write_report; from pellucid import compare\n"
        "from pellucid.compare import expand, to_html, to_text\n"
        "write_report(Run(sys.argv[1])); c = compare(expand([sys.argv[1]])); to_html(c); print(to_text(c))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "val/accuracy" in done.stdout
    assert (tmp_path / "run/report.html").is_file()


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_never_scrolls_sideways(tmp_path: Path, width: int) -> None:
    """A frame of the width is measured by a script of the test: the page itself has none."""
    long = "a-class-name-that-goes-on-and-on-without-any-space-" * 3
    run = make_run(tmp_path / "run", classes=[f"{long}{i}" for i in range(12)], skill=2.0, thumbnails=4)
    page = write_report(run)
    frame = tmp_path / "frame.html"
    source = page.read_text(encoding="utf-8").replace("&", "&amp;").replace('"', "&quot;")
    measure = "const d = this.contentDocument.documentElement; document.body.dataset.done = d.scrollWidth + ' ' + d.clientWidth"
    box = f'<iframe style="width:{width}px;height:900px;border:0" onload="{measure}" srcdoc="{source}"></iframe>'
    frame.write_text(f"<!doctype html><body>{box}", encoding="utf-8")
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    found = re.search(r'data-done="(\d+) (\d+)"', done.stdout)
    assert found is not None, done.stderr[-500:]
    assert int(found[1]) <= int(found[2])
