import json
import time

import numpy as np
import pytest
from PIL import Image

from mixtrain_jax.auditing import files, noise
from mixtrain_jax.auditing.ranking import rank
from mixtrain_jax.pages import audit as page
from mixtrain_jax.pages import crops
from tests.auditing import simulated
from tests.pages.browser import browser

CATEGORIES = [
    {"id": 10 + n, "name": name} for n, name in enumerate(["<disc>", "ring", "star", "bar"])
]


def an_audit(images=12, lowest=0.0):
    clean, sizes = simulated.truth(seed=0, images=images)
    human = noise.plant(clean, sizes, simulated.CLASSES, 0.1, seed=0).labels
    ranking = rank(human, simulated.look(clean, human, sizes, seed=0), [], images)
    return files.to_json(
        ranking,
        human,
        image_ids=list(range(images)),
        file_names=[f"image{n:03}.png" for n in range(images)],
        sizes=sizes,
        categories=CATEGORIES,
        model={"seen": "in sample"},
        lowest=lowest,
        threshold=max(0.5, lowest),
    )


def an_image(name):
    rng = np.random.default_rng(int(name[5:8]))
    ramp = np.linspace(60, 190, simulated.SIDE)[:, None, None] + rng.uniform(-30, 30, 3)
    return Image.fromarray(np.broadcast_to(ramp, (simulated.SIDE,) * 2 + (3,)).astype(np.uint8))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    made = an_audit()
    return made, page.write(folder, made, an_image)


def test_a_page_holds_no_address_and_escapes_names(written):
    made, path = written
    text = path.read_text()
    assert "<disc>" not in text
    assert "&lt;disc&gt;" in text and "\\u003cdisc\\u003e" in text
    assert "http" not in text
    pictures = path.parent / "crops" / made["fingerprint"]
    assert len(list(pictures.iterdir())) == len(made["findings"])


def test_a_page_says_why_it_should_not_be_believed(tmp_path):
    made = an_audit(images=2)
    made["model"] |= {"seen": "out of fold", "doubt": "300 boxes seem to be missing"}
    text = page.write(tmp_path, made, an_image).read_text()
    assert text.count('class="warning"') == 1 and "300 boxes seem to be missing" in text


def test_a_box_lies_in_its_crop():
    square = crops.window([(10, 20, 30, 30)])
    assert square == (2, 7, 36)
    np.testing.assert_allclose(
        crops.within((10, 20, 30, 30), square),
        [8000 / 36, 13000 / 36, 20000 / 36, 10000 / 36],
        atol=0.1,
    )


def test_a_crop_shows_its_window(tmp_path):
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[40:60, 40:60] = 255
    crops.crop(Image.fromarray(pixels), (40, 40, 40), tmp_path / "crop.png")
    shown = np.asarray(Image.open(tmp_path / "crop.png").convert("L"), np.float64)
    assert shown[:110, :110].mean() > 250
    assert shown[130:, 130:].mean() < 5
    crops.crop(Image.fromarray(pixels), (80, 80, 40), tmp_path / "crop.png")
    shown = np.asarray(Image.open(tmp_path / "crop.png").convert("L"), np.float64)
    assert abs(shown[130:, 130:].mean() - 128) < 3  # beyond the image


def test_the_gallery_in_a_browser(written):
    made, path = written
    findings = made["findings"]
    count = "document.getElementById('count').textContent"
    shown = "shown.length"
    with browser() as tab:
        tab.open(path)
        assert tab.run(shown) == len(findings)
        assert tab.run("document.querySelector('.card img').decode().then(() => true)")
        assert tab.run("document.querySelector('.card b').textContent") == findings[0]["kind"]

        tab.press("a", "r", "s", "a", "u")
        assert tab.run("JSON.parse(exported())") == {
            "version": 1,
            "fingerprint": made["fingerprint"],
            "decisions": {"0": "accept", "1": "reject"},
        }
        assert tab.run(count) == f"2 of {len(findings)} decided"
        assert tab.run("document.querySelector('.card.chosen').dataset.id") == "3"
        tab.press("ArrowLeft")
        assert tab.run("document.querySelector('.card.chosen').dataset.id") == "2"

        tab.run("document.querySelector('#kinds input[value=missing]').click()")
        expected = [f for f in findings if f["kind"] != "missing"]
        assert tab.run(shown) == len(expected)
        tab.run("set = (id, v) => { at(id).value = v; at(id).dispatchEvent(new Event('input')) }")
        tab.run("set('score', .2)")
        expected = [f for f in expected if f["score"] >= 0.2]
        assert tab.run("shown.map((f) => f.id)") == [f["id"] for f in expected]
        tab.run("set('class', '11')")
        of_class = [
            f["id"]
            for f in expected
            if 11 in [f[side]["category_id"] for side in ("human", "proposed") if f[side]]
        ]
        assert tab.run("shown.map((f) => f.id)") == of_class
        name = expected[-1]["file_name"]
        tab.run(f"set('class', ''); set('image', '{name.upper()}')")
        of_image = [f["id"] for f in expected if f["file_name"] == name]
        assert 0 < len(of_image) < len(expected)
        assert tab.run("shown.map((f) => f.id)") == of_image
        tab.run("at('all').click()")
        made_decisions = tab.run("JSON.parse(exported())")
        assert set(made_decisions["decisions"]) >= {str(number) for number in of_image}
        accepted = files.read_decisions(made_decisions, "decisions.json", made)
        assert accepted[[number for number in of_image if number != 1]].all()
        assert not accepted[1]  # it was rejected before
        tab.run("at('undo').click()")
        assert len(tab.run("JSON.parse(exported())")["decisions"]) == 2

        tab.run("set('image', ''); set('state', 'reject')")
        assert tab.run("shown.map((f) => f.id)") == [
            f["id"]
            for f in findings
            if f["id"] == 1 and f["score"] >= 0.2 and f["kind"] != "missing"
        ]
        tab.open(path)  # decisions outlive the page
        assert tab.run("Object.keys(decisions).length") == 2
        assert tab.errors == []


def test_filters_and_buttons_work_without_a_mouse_and_without_keys(written):
    _, path = written
    with browser() as tab:
        tab.open(path)
        tab.run("at('score').focus()")
        tab.press(*["ArrowRight"] * 5)
        assert tab.run("[Number(at('score').value), chosen]") == [0.05, 0]
        tab.press("Escape", "ArrowRight")  # the keys are the gallery's again
        assert tab.run("[Number(at('score').value), chosen]") == [0.05, 1]
        tab.run("at('reject').click(); at('accept').click()")
        assert tab.run("shown.slice(0, 4).map((f) => decisions[f.id] || '')") == [
            "", "reject", "accept", "",
        ]  # fmt: skip
        tab.run("at('all').click()")
        assert tab.run("Object.values(decisions).filter((word) => word === 'reject').length") == 1
        assert tab.run("shown.every((f) => decisions[f.id]) && at('all').disabled")
        assert tab.errors == []


@pytest.mark.parametrize(
    "content", ["null", "{}", '{"fingerprint": FINGERPRINT, "decisions": null}']
)
def test_a_file_that_holds_no_decisions_is_told_and_changes_nothing(written, content):
    made, path = written
    content = content.replace("FINGERPRINT", json.dumps(made["fingerprint"]))
    with browser() as tab:
        tab.open(path)
        tab.run("told = []; alert = (text) => { told.push(text); }")
        tab.run(f"load({{ target: {{ files: [new File([{json.dumps(content)}], 'd.json')] }} }})")
        assert tab.run("told.length") == 1
        assert tab.run("[Object.keys(decisions).length, past.length]") == [0, 0]
        assert tab.errors == []


def test_the_export_is_a_file_and_comes_back(written, tmp_path):
    made, path = written
    with browser() as tab:
        tab.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        tab.open(path)
        tab.press("a", "a")
        tab.run("at('export').click()")
        saved = tmp_path / "decisions.json"
        for _ in range(300):  # the browser writes it under another name first
            if saved.exists() and saved.stat().st_size:
                break
            time.sleep(0.1)
        decisions = json.loads(saved.read_text())
        assert files.read_decisions(decisions, "decisions.json", made)[:2].all()

        tab.run("at('undo').click(); at('undo').click()")
        tab.run(
            "load({ target: { files: [new File(["
            + json.dumps(json.dumps(decisions))
            + "], 'd')] } })"
        )
        assert tab.run("decisions") == {"0": "accept", "1": "accept"}
        assert tab.errors == []


def test_what_another_tab_decides_is_not_lost(written):
    _, path = written
    with browser() as tab:
        tab.open(path)
        tab.run("localStorage.setItem(store, JSON.stringify({ 5: 'reject' }))")
        tab.run("dispatchEvent(new StorageEvent('storage', { key: store }))")
        tab.press("a")
        assert tab.run("JSON.parse(localStorage.getItem(store))") == {"0": "accept", "5": "reject"}
        tab.run("localStorage.clear()")
        tab.run("at('image').focus()")
        tab.press("Enter")
        assert tab.run("document.activeElement === at('image')") is False
        assert tab.errors == []


def test_five_thousand_findings_scroll_without_delay(tmp_path):
    """A step draws only the cards on the screen, so that no browser has to lay out 5,000."""
    made = an_audit(images=4)
    one = made["findings"][0]
    made["findings"] = [dict(one, id=n) for n in range(5000)]
    path = page.write(tmp_path, made, an_image)
    with browser() as tab:
        tab.open(path)
        assert tab.run("shown.length") == 5000
        cards = tab.run("document.querySelectorAll('.card').length")
        assert cards < 100
        drawn = tab.run(
            """(async () => {
              let drawn = 0;
              const count = (changes) =>
                changes.forEach((change) => { drawn += change.addedNodes.length; });
              const observer = new MutationObserver(count);
              observer.observe(document.body, { childList: true, subtree: true });
              const frame = () => new Promise((done) =>
                requestAnimationFrame(() => requestAnimationFrame(done)));
              for (let n = 1; n <= 40; n++) {
                scrollTo(0, n / 40 * document.body.scrollHeight);
                await frame();
              }
              count(observer.takeRecords());
              return drawn;
            })()"""
        )
        assert 40 < drawn <= 40 * 2 * cards
        assert tab.run("[...document.querySelectorAll('.card')].at(-1).dataset.id") == "4999"
        tab.press("a")  # the chosen card, the first, is not on the screen: it comes there
        assert tab.run("Object.keys(decisions).length") == 0
        tab.press("a")
        assert tab.run("decisions") == {"0": "accept"}
        assert tab.errors == []


def test_an_audit_without_findings_is_a_page_too(tmp_path):
    made = an_audit(images=3, lowest=2.0)
    path = page.write(tmp_path, made, an_image)
    with browser() as tab:
        tab.open(path)
        tab.press("a", "r", "u", "ArrowRight")
        assert tab.run("shown.length") == 0
        assert tab.errors == []
