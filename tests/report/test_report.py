"""The report: right numbers, nothing from outside, nothing injected, clear errors, and a picture that moves."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from equidyn.core.errors import InputError
from equidyn.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# ---- Run folders that look like real ones ---------------------------------------------------------------------------


def charged_particles(samples: int, particles: int, times: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Charged particles in vacuum, by leapfrog with softened forces."""
    rng = np.random.default_rng(seed)
    charge = rng.choice([-1.0, 1.0], size=(samples, particles))
    pos = rng.normal(size=(samples, particles, 3))
    vel = rng.normal(size=(samples, particles, 3))
    vel *= 0.5 / np.linalg.norm(vel, axis=-1, keepdims=True)

    def force(pos: np.ndarray) -> np.ndarray:
        apart = pos[:, :, None] - pos[:, None]
        near = ((apart**2).sum(-1) + 0.1) ** 1.5
        return np.einsum("si,sj,sijk->sik", charge, charge, apart / near[..., None])

    initial, initial_vel, states, dt, steps = pos.copy(), vel.copy(), [], 0.01, 0
    for moment in times:
        while steps < round(moment / dt):
            vel = vel + dt * force(pos)
            pos = pos + dt * vel
            steps += 1
        states.append(pos.copy())
    true = np.stack(states, axis=1)
    return {"times": times, "initial": initial, "initial_vel": initial_vel, "true": true, "charge": charge}


def make_run(
    folder: Path, *, system: str = "egno", seed: int = 0, error: float = 0.06, name: str | None = None, points: int = 50
) -> Path:
    """A run folder as training and evaluation leave it."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    times = np.linspace(0, 3, points + 1)[1:]
    path = charged_particles(8, 5, times, seed=7)
    wander = np.cumsum(rng.normal(size=path["true"].shape), axis=1) / np.sqrt(points)
    predicted = path["true"] + error * (times / 3)[None, :, None, None] * wander
    np.savez(folder / "predictions.npz", **path, predicted=predicted)
    (folder / "config.yaml").write_text(yaml.safe_dump(config(system, seed), sort_keys=False))
    (folder / "metrics.csv").write_text(metrics(rng, error))
    (folder / "evaluation.json").write_text(json.dumps(evaluation(name or system, system, error, rng)))
    return folder


def config(system: str, seed: int) -> dict[str, Any]:
    return {
        "name": system,
        "system": system,
        "seed": seed,
        "model": {"hidden_dim": 64, "layers": 4, "modes": 2},
        "data": {"file": "data/charged.npz", "train": 3000, "validation": 2000, "test": 2000},
        "task": {"target": "trajectory", "points": 5},
        "train": {"epochs": 400, "batch_size": 100, "lr": 1e-3, "ema": 0.999},
    }


def metrics(rng: np.random.Generator, error: float) -> str:
    lines = ["epoch,step,seconds,train_loss,val_f_mse,val_a_mse,lr"]
    for epoch in range(0, 400, 5):
        fall = 1.5 * error**2 + 0.09 * np.exp(-epoch / 45) + 0.02 * np.exp(-epoch / 160)
        loss, f_mse = fall * np.exp(0.08 * rng.normal(size=2))
        val = "" if epoch == 15 else f"{f_mse:.6g}"
        lines.append(f"{epoch},{30 * epoch},{0.3 * epoch:.1f},{0.8 * loss:.6g},{val},{0.4 * f_mse:.6g},0.001")
    return "\n".join(lines) + "\n"


def evaluation(name: str, system: str, error: float, rng: np.random.Generator) -> dict[str, Any]:
    times = np.linspace(0.6, 3, 5)
    dense = np.linspace(0.06, 3, 50)
    grow = lambda t, scale, power: (scale * (t / 3) ** power).tolist()  # noqa: E731
    f_mse = 1.5 * error**2
    unseen = np.array(grow(dense, f_mse, 1.8)) * np.exp(0.05 * rng.normal(size=50))
    return {
        "name": name,
        "system": system,
        "parameters": 201672 if system == "egno" else 134020,
        "split": "test",
        "samples": 2000,
        "f_mse": f_mse,
        "a_mse": 0.41 * f_mse,
        "times": times.tolist(),
        "horizon_mse": grow(times, f_mse, 1.8),
        "baselines": {
            "constant": {"f_mse": 1.0213, "a_mse": 0.4012, "horizon_mse": grow(times, 1.0213, 2.0)},
            "ballistic": {"f_mse": 0.0742, "a_mse": 0.0241, "horizon_mse": grow(times, 0.0742, 3.4)},
            "linear": {"f_mse": 0.0261, "a_mse": 0.0112, "horizon_mse": grow(times, 0.0261, 2.6)},
        },
        "unseen_times": {"times": dense.tolist(), "mse": unseen.tolist(), "trained_at": times.tolist()}
        if system == "egno"
        else None,
        "drift": {
            "energy": grow(times, 0.5 * error, 1.2),
            "momentum": grow(times, 0.2 * error, 0.8),
            "energy_true": grow(times, 0.0004, 0.5),
            "momentum_true": grow(times, 1e-6, 0.1),
        },
        "symmetry": {
            "rotation": 3.1e-7,
            "reflection": 2.8e-7,
            "translation": 4.4e-7,
            "permutation": 1.2e-7,
            "batching": 0.0 if system == "egno" else 6.1e-3,
        },
        "symmetry_dtype": "float32",
        "published": {
            "EGNO (paper)": {"f_mse": 0.0054, "a_mse": 0.0022},
            "SEGNO (paper)": {"f_mse": 0.0043},
        },
        "seconds_train": 120.3,
        "seconds_per_step": 0.0312,
        "machine": "2 cores, torch 2.13.0",
        "citation": f"@inproceedings{{{system},\n  title = {{A paper on {system}}},\n  year = {{2024}},\n}}",
    }


def change(folder: Path, **entries: Any) -> Path:
    path = folder / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return folder


def change_arrays(folder: Path, drop: tuple[str, ...] = (), **arrays: Any) -> Path:
    with np.load(folder / "predictions.npz") as archive:
        kept = {name: archive[name] for name in archive.files if name not in drop}
    np.savez(folder / "predictions.npz", **(kept | arrays))
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [
        make_run(tmp_path / "runs" / "egno"),
        make_run(tmp_path / "runs" / "egnn", system="egnn", seed=1, error=0.11),
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs" / "egno")


def page_of(*folders: Path) -> str:
    return write_report(folders, folders[0].parent / "report.html").read_text(encoding="utf-8")


# ---- The page -------------------------------------------------------------------------------------------------------


def cells(page: str, name: str) -> list[str]:
    """The table row that begins with a name."""
    row = re.search(rf'<tr><th scope="row">(?:<span[^>]*></span>)?{re.escape(name)}</th>(.*?)</tr>', page)
    assert row, name
    return [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td.*?</td>", row[1])]


def test_returns_the_path_and_makes_its_folder(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder" / "report.html"
    assert write_report([run], out) == out
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_the_table_holds_the_evaluation(pair: list[Path]) -> None:
    page = page_of(*pair)
    assert cells(page, "egno") == ["0.0054", "0.0022", "0.207×", "201,672", "2 min"]
    assert cells(page, "egnn") == ["0.0181", "0.0074", "0.695×", "134,020", "2 min"]
    assert cells(page, "linear") == ["0.0261", "0.0112", "1×", "–", "–"]
    assert cells(page, "constant")[:3] == ["1.02", "0.4012", "39.1×"]
    assert cells(page, "SEGNO (paper)") == ["0.0043", "–", "–", "–", "–"]
    assert re.findall(r'class="best"[^>]*>([^<]*)', page) == ["0.0022", "0.0022", "0.0043"]  # EGNO, its paper, SEGNO
    assert "4.8 times less than the best simple baseline, linear" in page


def test_the_page_shows_every_part(pair: list[Path]) -> None:
    page = page_of(*pair)
    for title in (
        "Results",
        "Learning",
        "Error over the horizon",
        "Measured symmetry",
        "Drift of conserved quantities",
    ):
        assert f"<h2>{title}</h2>" in page
    assert "hidden_dim: 64" in page
    assert "equidyn train runs/egno/config.yaml" in page
    assert "@inproceedings{egnn" in page
    assert "2 cores, torch 2.13.0" in page
    assert cells(page, "batching") == ["0 rounding", "0.0061 above rounding"]
    assert str(pair[0].parent.parent) not in page  # no path of the author's machine


def test_the_page_needs_nothing_from_outside(pair: list[Path]) -> None:
    page = page_of(*pair)
    outside = page.replace("http://www.w3.org/2000/svg", "")  # a name, never fetched
    assert not re.search(r"https?://|//cdn|@import|url\(", outside)
    assert not re.search(r"\ssrc=", page)
    assert re.findall(r'\shref="([^"]*)"', page) == ["data:,"]
    assert "default-src 'none'" in page
    assert len(page.encode()) < 1_000_000


def test_optional_parts_may_be_missing(run: Path) -> None:
    kept = ("system", "name", "f_mse", "a_mse", "times", "horizon_mse")
    path = run / "evaluation.json"
    path.write_text(json.dumps({key: json.loads(path.read_text())[key] for key in kept}))
    (run / "metrics.csv").write_text("epoch,step,seconds,train_loss,val_f_mse,val_a_mse,lr\n")
    change_arrays(run, drop=("charge",))
    page = page_of(run)
    assert cells(page, "egno") == ["0.0054", "0.0022", "–", "–", "–"]
    for title in ("Learning", "Measured symmetry", "Drift of conserved quantities", "Cite"):
        assert title not in page


def test_runs_of_one_name_stay_apart(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "a"), make_run(tmp_path / "b"), make_run(tmp_path / "c" / "a"))
    assert "<h1>egno (a), egno (b) and egno (a) #2</h1>" in page


def test_runs_that_disagree_on_a_baseline_keep_both(pair: list[Path]) -> None:
    change(pair[1], baselines={"linear": {"f_mse": 0.5, "a_mse": 0.25, "horizon_mse": [0.1] * 5}})
    page = page_of(*pair)
    assert cells(page, "linear")[0] == "0.0261"
    assert cells(page, "linear (egnn)")[0] == "0.5000"


def test_what_files_say_is_never_markup(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\"'$body"
    folder = make_run(tmp_path / "runs" / "evil", name=evil)
    score = {"f_mse": 1.0, "a_mse": 1.0, "horizon_mse": [1.0] * 5}
    change(folder, split=evil, machine=evil, citation=evil, system=evil, baselines={evil: score})
    change(folder, published={evil: {"f_mse": 1.0}}, symmetry={evil: 1.0}, symmetry_dtype=evil)
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": evil}))
    page = page_of(folder)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert page.count("<script") == page.count("</script>")


def test_numbers_that_are_none_do_not_break_the_page(run: Path) -> None:
    change(run, f_mse=float("nan"), a_mse=float("inf"), horizon_mse=[float("nan"), 1e300, None, 0.0, -1.0])
    change(run, symmetry={"rotation": float("nan")}, drift={"energy": [float("nan")] * 5})
    with np.load(run / "predictions.npz") as archive:
        predicted = archive["predicted"].copy()
    predicted[0, 3:], predicted[1, :, 0], predicted[2] = np.nan, 1e30, np.inf
    change_arrays(run, predicted=predicted)
    page = page_of(run)
    blocks = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page)
    assert blocks
    for block in blocks:
        json.loads(block, parse_constant=lambda name: pytest.fail(f"{name} in the data of a chart"))
    assert not re.search(r'd="[^"]*(nan|inf)', page)


# ---- Errors ---------------------------------------------------------------------------------------------------------


def break_(name: str, content: str | bytes) -> Any:
    def act(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return act


def truncate(folder: Path) -> None:
    path = folder / "predictions.npz"
    path.write_bytes(path.read_bytes()[:-2000])


BROKEN = {
    "no folder": (shutil.rmtree, "no such run folder"),
    "no config": (lambda folder: (folder / "config.yaml").unlink(), "config.yaml is missing"),
    "no metrics": (lambda folder: (folder / "metrics.csv").unlink(), "metrics.csv is missing"),
    "no evaluation": (lambda folder: (folder / "evaluation.json").unlink(), "evaluation.json is missing"),
    "no predictions": (lambda folder: (folder / "predictions.npz").unlink(), "predictions.npz is missing"),
    "bad YAML": (break_("config.yaml", "a: [1"), "corrupt YAML"),
    "YAML list": (break_("config.yaml", "- 1"), "expected a YAML mapping"),
    "not text": (break_("config.yaml", b"\xff\xfe\x00"), "unreadable file"),
    "bad JSON": (break_("evaluation.json", '{"name": '), "corrupt JSON"),
    "JSON list": (break_("evaluation.json", "[]"), "expected a JSON object"),
    "no f_mse": (lambda folder: change(folder, f_mse=None), "'f_mse' is missing"),
    "f_mse text": (lambda folder: change(folder, f_mse="low"), "wrong 'f_mse'"),
    "horizon": (lambda folder: change(folder, horizon_mse=[1.0]), "wrong length of 'horizon_mse'"),
    "nested times": (lambda folder: change(folder, times=[[1.0], [2.0]]), "wrong 'times'"),
    "baseline": (lambda folder: change(folder, baselines={"linear": {"f_mse": 1.0}}), "baselines, linear"),
    "CSV column": (break_("metrics.csv", "epoch,step\n0,0\n"), "column 'train_loss' is missing"),
    "CSV number": (break_("metrics.csv", "epoch,train_loss,val_f_mse\n0,low,1\n"), "row 2, train_loss"),
    "no zip": (break_("predictions.npz", b"nothing"), "corrupt or unsafe array file"),
    "truncated": (truncate, "corrupt or unsafe array file"),
    "pickle": (lambda folder: change_arrays(folder, true=np.array([{}], dtype=object)), "corrupt or unsafe array file"),
    "no array": (lambda folder: change_arrays(folder, drop=("true",)), "array 'true' is missing"),
    "shape": (lambda folder: change_arrays(folder, predicted=np.zeros((8, 2, 5, 3))), "wrong shape of 'predicted'"),
    "text array": (lambda folder: change_arrays(folder, charge=np.array(["+"])), "holds no numbers"),
    "times": (lambda folder: change_arrays(folder, times=np.zeros(50)), "unusable 'times'"),
    "bonds": (lambda folder: change_arrays(folder, bonds=np.array([[0, 9]])), "a particle that does not exist"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_run_is_one_clear_line(run: Path, kind: str) -> None:
    act, message = BROKEN[kind]
    act(run)
    out = run.parent / "report.html"
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        write_report([run], out)
    assert "\n" not in str(caught.value)
    assert str(run) in str(caught.value)
    assert not out.exists()


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run folder given"):
        write_report([], tmp_path / "report.html")


def test_an_unwritable_place_is_one_clear_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "report.html", run):
        with pytest.raises(InputError, match="cannot write the report"):
            write_report([run], out)
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_interrupted_write_leaves_the_old_report(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run.parent / "report.html"
    out.write_text("the old report")

    def half(self: Path, text: str, **_: Any) -> int:
        self.write_bytes(text[:100].encode())
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(KeyboardInterrupt):
        write_report([run], out)
    assert out.read_text() == "the old report"
    assert sorted(path.name for path in run.parent.iterdir()) == ["egno", "report.html"]


# ---- In a browser ---------------------------------------------------------------------------------------------------


class Browser:
    """A headless Chromium driven over a pipe by its own debugging protocol; keeps what a page says and asks for."""

    def __init__(self, profile: Path) -> None:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        shell = ["sh", "-c", 'exec "$@" 3<&0 4>&1 >/dev/null 2>&1 </dev/null', "sh"]  # it talks on 3 and 4
        command = [*shell, str(BROWSER), *options, f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.number, self.session, self.events = 0, "", list[dict[str, Any]]()

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        pipe = self.process.stdin
        assert pipe
        pipe.write(json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        pipe.flush()
        while (answer := self.receive()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def receive(self) -> dict[str, Any]:
        pipe = self.process.stdout
        assert pipe
        text = b""
        while (byte := pipe.read(1)) != b"\0":
            assert byte, "the browser is gone"
            text += byte
        return json.loads(text)

    def open(self, page: Path, width: int = 1280, height: int = 1600) -> None:
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            self(f"{domain}.enable")
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self("Page.navigate", url=page.as_uri())
        self.until("document.readyState === 'complete'")

    def ask(self, expression: str) -> Any:
        return self("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def until(self, expression: str, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not self.ask(expression):
            assert time.monotonic() < end, f"still not: {expression}"
            time.sleep(0.05)

    def press(self, key: str, code: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=code)

    def complaints(self) -> list[Any]:
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self.events if event.get("method") in kinds]

    def requests(self) -> set[str]:
        sent = (event for event in self.events if event.get("method") == "Network.requestWillBeSent")
        return {event["params"]["request"]["url"] for event in sent}


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if BROWSER is None:
        pytest.skip("no chromium or google-chrome binary to open the report with")
    browser = Browser(tmp_path / "profile")
    watchdog = threading.Timer(60, browser.process.kill)
    watchdog.start()
    yield browser
    watchdog.cancel()
    browser.process.kill()
    browser.process.communicate()


FRAMES = "Number(document.getElementById('scene').dataset.frames)"
STATE = "document.getElementById('scene').dataset.state"
CLOCK = "Number(document.querySelector('[data-part=clock]').textContent)"


def test_the_animation_plays_and_obeys(browser: Browser, pair: list[Path], tmp_path: Path) -> None:
    page = write_report(pair, tmp_path / "report.html")
    browser.open(page)
    browser.until(f"{FRAMES} > 20 && {CLOCK} > 0.05")
    assert browser.ask(STATE) == "playing"
    browser.press(" ", "Space")
    assert browser.ask(STATE) == "paused"
    for name, value, shown in (("sample", 3, "final error"), ("run", 1, "egnn")):
        before = browser.ask(FRAMES)
        select = f"document.querySelector('[data-part={name}]')"
        browser.ask(f"{select}.value = {value}; {select}.dispatchEvent(new Event('change'))")
        assert shown in browser.ask(f"{select}.selectedOptions[0].text")
        browser.until(f"{FRAMES} > {before}")
    browser.press(" ", "Space")
    browser.until(f"{STATE} === 'playing'")
    assert browser.complaints() == []
    assert browser.requests() == {page.as_uri()}


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_window(browser: Browser, pair: list[Path], tmp_path: Path, width: int) -> None:
    browser.open(write_report(pair, tmp_path / "report.html"), width)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    chart = "document.querySelector('figure.chart svg[role=img]')"
    browser.ask(f"{chart}.dispatchEvent(new PointerEvent('pointermove', {{clientX: {width // 3}}}))")
    assert re.match(r"epoch \d+egno0\.\d+egnn0\.\d+$", browser.ask("document.querySelector('.tip').textContent"))
    assert browser.complaints() == []


def test_a_skeleton_with_lost_positions_plays_too(browser: Browser, run: Path, tmp_path: Path) -> None:
    with np.load(run / "predictions.npz") as archive:
        predicted = archive["predicted"].copy()
    predicted[0, 3:] = np.nan
    change_arrays(run, drop=("charge",), bonds=np.array([[0, 1], [1, 2], [2, 3]]), predicted=predicted)
    browser.open(write_report([run], tmp_path / "report.html"))
    browser.until(f"{FRAMES} > 20")
    assert browser.complaints() == []
