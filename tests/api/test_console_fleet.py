"""The console's list of adapters and an adapter's page: uploads, loads, rolls back, a thousand, and hostile words."""

import base64
import json
from pathlib import Path

import pytest
from peft import LoraConfig
from transformers import ASTForAudioClassification

from service.registry.bundle import BundleFiles
from tests import browser
from tests.api.live import Live
from tests.api.pages import opened
from tests.browser import Page
from tests.bundles import random_bundle
from tests.exchange.classifiers import adapt

pytestmark = pytest.mark.skipif(
    browser.installed() is None, reason=f"no Chromium here: none of {', '.join(browser.NAMES)} is installed"
)


def test_what_was_done_is_told_in_sight(page: Page, live: Live) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=1000, height=220, deviceScaleFactor=1, mobile=False)
    opened(page, live.url, "adapters")
    row = "[data-name=alpha] button"
    page.until(f"document.querySelector('{row}') !== null")
    page.evaluate(f"document.querySelector('{row}').scrollIntoView()")
    page.evaluate(f"document.querySelector('{row}').focus()")
    page.click(row)
    page.until("document.querySelector('#toasts .done') !== null")
    assert page.in_sight("#toasts .done")
    page.until("document.activeElement.closest('[data-name=alpha]') !== null")
    page.call("Emulation.clearDeviceMetricsOverride")


def test_the_reason_of_a_failure_is_shown(page: Page, live: Live, tmp_path: Path, clip: bytes) -> None:
    live.publish(tmp_path, "broken-file", seed=31)
    registry = live.context.runtime.registry
    path = registry.weights_path(registry.resolve("broken-file"))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    live.http.post("/v1/adapters/broken-file/unload")
    assert live.http.post("/v1/classify?adapter=broken-file", content=clip).status_code == 503
    opened(page, live.url, "adapters")
    page.until("document.querySelector('[data-name=broken-file]') !== null")
    assert "failed" in page.text("[data-name=broken-file] .badge")
    assert "its digest is sha256:" in page.text("[data-name=broken-file] .reason")
    live.http.delete("/v1/adapters/broken-file")


def saved(files: BundleFiles, directory: Path) -> tuple[Path, Path]:
    directory.mkdir()
    paths = (directory / "adapter_config.json", directory / "adapter_model.safetensors")
    for path, content in zip(paths, (files.config, files.weights), strict=True):
        path.write_bytes(content)
    return paths


def test_uploads_rolls_back_and_forward(page: Page, live: Live, tmp_path: Path) -> None:
    live.publish(tmp_path, "rolling", seed=1)
    paths = saved(random_bundle(tmp_path, live.backbone, "rolling", 2), tmp_path / "second")
    opened(page, live.url, "adapters")
    page.choose_files("#bundle", paths[0])
    page.click("#upload-run")
    assert "adapter_model.safetensors together" in page.text("#upload-notice")
    page.choose_files("#bundle", *paths)
    page.click("#upload-run")
    page.until("document.querySelector('#upload-notice .done') !== null")
    assert "rolling version 2 is here and live" in page.text("#upload-notice")
    assert page.evaluate("document.querySelectorAll('.checks .passed').length") == 4
    opened(page, live.url, "adapter/rolling")
    for version in (1, 2):
        page.click(f"[data-key='rolling/{version}/Make live']")
        page.click("dialog button")
        page.until(f"document.querySelector('#live').textContent.includes('live: version {version}')")
        assert live.http.get("/v1/adapters/rolling").json()["live"] == version
    page.evaluate("[...document.querySelectorAll('.toast button')].findLast(one => one.textContent === 'Undo').click()")
    page.until("document.querySelector('#live').textContent.includes('live: version 1')")
    page.click("[data-key='rolling/1/Load']")
    page.click("[data-key='rolling/1/Unload']")
    page.click("[data-key='rolling/1/Load']")
    page.evaluate("document.querySelector('#alias').value = 'canary'")
    page.click("#alias-form button")
    page.until("document.querySelector('[data-key=\"rolling/2/Drop canary\"]') !== null")
    page.until("document.querySelector('.history').textContent.includes('alias canary, version 2')")
    page.click("[data-key='rolling/2/Drop canary']")
    page.click("dialog button.quiet")  # Cancel
    assert live.http.get("/v1/adapters/rolling").json()["aliases"] == {"canary": 2, "live": 1}
    page.click("[data-key=delete]")
    page.click("dialog button")
    page.until("location.hash === '#/adapters'")
    assert live.http.get("/v1/adapters/rolling").status_code == 404


def test_what_peft_saved_is_uploaded(page: Page, live: Live, tiny_ast_dir: Path, tmp_path: Path) -> None:
    model = ASTForAudioClassification.from_pretrained(tiny_ast_dir, num_labels=2)
    adapt(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"]), tmp_path / "saved")
    (tmp_path / "saved" / "README.md").write_text("![Loss](loss.png)")
    (tmp_path / "saved" / "loss.png").write_bytes(base64.b64decode(PNG))
    config = tmp_path / "saved" / "adapter_config.json"
    there = (tmp_path / "saved" / name for name in ("adapter_model.safetensors", "README.md", "loss.png"))
    opened(page, live.url, "adapters")
    page.choose_files("#bundle", config, *there)
    page.until("!document.querySelector('fieldset').hidden")
    page.click("#upload-run")
    page.until("document.querySelector('#upload-notice .problem') !== null")
    assert "give it a name" in page.text("#upload-notice")
    page.evaluate("document.querySelector('#peft-name').value = 'from-peft'")
    page.evaluate("document.querySelector('#peft-labels').value = 'miaow\\n<b>drip</b>\\n'")
    page.evaluate("document.querySelector('#peft-frames').value = 64")
    page.click("#upload-run")
    page.until("document.querySelector('#upload-notice .done, #upload-notice .problem') !== null")
    assert "from-peft version 1 is here and live" in page.text("#upload-notice")
    assert page.evaluate("document.querySelectorAll('.checks .passed').length") == 4
    told = live.http.get("/v1/adapters/from-peft/versions/1").json()
    assert (told["labels"], told["families"]) == (["miaow", "<b>drip</b>"], ["lora"])
    assert live.http.get("/v1/adapters/from-peft/versions/1/card").text == f"![Loss]({PICTURE})"
    config.write_text(json.dumps(json.loads(config.read_bytes()) | {"base_model_name_or_path": "else/where"}))
    page.choose_files("#bundle", config, tmp_path / "saved" / "adapter_model.safetensors")
    page.evaluate("document.querySelector('#peft-name').value = 'other-base'")
    page.click("#upload-run")
    page.until("document.querySelector('dialog') !== null")
    assert "trained on else/where" in page.text("dialog")
    page.click("dialog .quiet")
    page.until("document.querySelector('#upload-notice .problem') !== null")
    assert "not uploaded" in page.text("#upload-notice")
    live.http.delete("/v1/adapters/from-peft")


def test_adapters_are_filtered_by_the_service(page: Page, live: Live, tmp_path: Path) -> None:
    live.publish(tmp_path, "of-lora", format_version=3, prompt_length=0, bottleneck_dim=0, lora={"r": 2, "alpha": 4.0})
    opened(page, live.url, "adapters")
    shown = "[...document.querySelectorAll('[data-name]')].map(one => one.dataset.name).join()"
    page.until(f"({shown}).includes('of-lora')")
    assert "audio classification · lora" in page.text("[data-name=of-lora]")
    assert "default" in page.text("[data-name=of-lora] th")
    for field, value, found in (
        ("family", "lora", "of-lora"),
        ("domain", "elsewhere", ""),
        ("domain", "", "of-lora"),
        ("family", "dora", ""),
    ):
        page.evaluate(f"document.querySelector('#by-{field}').value = '{value}'")
        for event in ("input", "change"):
            page.evaluate(f"document.querySelector('#by-{field}').dispatchEvent(new Event('{event}'))")
        page.until(f"{shown} === '{found}'")
    assert page.text("section[aria-label=Adapters] > .hint") == "No adapter is like that."
    live.http.delete("/v1/adapters/of-lora")


PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
PICTURE = f"data:image/png;base64,{PNG}"


def test_the_traffic_of_an_adapter_is_drawn_as_it_comes(page: Page, live: Live, clip: bytes) -> None:
    opened(page, live.url, "adapter/alpha")
    page.until("document.querySelector('#detail .facts') !== null")
    page.until("document.querySelector('#traffic-title')?.offsetParent != null")
    for _ in range(3):
        assert live.http.post("/v1/classify?adapter=alpha", content=clip).status_code == 200
    page.until(
        "/^[1-9]\\d* requests a minute now, \\d+ ms each/.test(document.querySelector('figcaption').textContent)"
    )
    drawn = page.picture(".chart")
    assert (drawn[:-2, -8:-2, 1] - drawn[:-2, -8:-2, 0] > 40).any()


HOSTILE = "<img src=x onerror=\"document.title='pwned'\">"


def test_what_an_adapter_says_stays_text(page: Page, live: Live, tmp_path: Path) -> None:
    labels = [HOSTILE, "<script>document.title='pwned'</script>", "\u202eevil"]
    files = random_bundle(tmp_path, live.backbone, "hostile", labels=labels, description=HOSTILE)
    pictures = f"![ok]({PICTURE}) ![no](http://outside.example/x.png) ![no](data:image/svg+xml;base64,AAAA)"
    links = "[run](javascript:alert(1)) [out](https://out.example/)"
    card = f"# {HOSTILE}\n{pictures}\n{links}\n| {HOSTILE} |\n| --- |\n- {HOSTILE}"
    parts = {"config": files.config, "weights": files.weights, "card": card.encode()}
    assert live.http.post("/v1/adapters/hostile/versions", files=parts).status_code == 201
    opened(page, live.url, "adapter/hostile")
    page.until("document.querySelector('.card-text') !== null")
    assert HOSTILE in page.text("#detail .text")
    assert HOSTILE in page.text("#detail .labels")
    assert "\ufffdevil" in page.text("#detail .labels")  # not drawn as `live`
    assert HOSTILE in page.text(".card-text")
    assert page.text(".card-text").count(HOSTILE) == 3
    assert page.evaluate("[...document.querySelectorAll('#view img, #view script')].map(one => one.src)") == [PICTURE]
    assert page.evaluate("[...document.querySelectorAll('.card-text a')].map(one => one.href)") == [
        "https://out.example/"
    ]
    assert page.evaluate("document.title") == "hostile · ipet-serve"
    live.http.delete("/v1/adapters/hostile")


@pytest.mark.parametrize(
    "text",
    [
        "'](data:image/' + '['.repeat(2 ** 20)",
        "'](data:image/' + '!['.repeat(2 ** 19)",
        "'![]('.repeat(2 ** 18)",
        "('|' + 'a|'.repeat(49) + '\\n').repeat(3000)",
        "'`a`'.repeat(2 ** 18)",
    ],
)
def test_a_hostile_card_is_drawn_in_no_time(page: Page, live: Live, text: str) -> None:
    opened(page, live.url, "adapters")
    drawn = (
        f"import('/console/parts/card.js').then(({{ drawCard }}) => {{ const text = {text}, began = performance.now();"
        " const card = drawCard(text); return [performance.now() - began, card.querySelectorAll('*').length]; })"
    )
    took, parts = min(page.evaluate(drawn) for _ in range(3))  # by a clock, which goes on where the machine pauses
    assert took < 500
    assert parts < 20_000


def thousand(page: Page, state: str) -> None:
    """Has the page be answered a thousand adapters, so that no test has to publish them."""
    version = {"version": 1, "digest": "sha256:0", "created": "2026-11-26T07:46:04Z", "state": state, "verified": True}
    version |= {"tier": "disk", "pinned": False, "reason": None, "families": ["ipet"], "domain": None}
    page.evaluate(
        f"""(() => {{
          const version = {json.dumps(version)};
          const adapters = Array.from({{length: 1000}}, (_, i) => ({{name: `many-${{String(i).padStart(4, '0')}}`,
            task_type: 'AUDIO_CLASSIFICATION', live: 1, aliases: {{live: 1}}, versions: [{{...version, state:
            i % 2 ? version.state : 'registered'}}]}}));
          const text = JSON.stringify({{adapters, next: null}});
          window.real ??= window.fetch;
          const isList = to => String(to).startsWith('/v1/adapters?');
          window.fetch = (to, options) => isList(to) ? new Response(text) : real(to, options);
        }})()"""
    )


def spent(page: Page) -> float:
    """Milliseconds that the page's main thread has computed."""
    told = page.call("Performance.getMetrics")["metrics"]
    return 1000 * float(next(one["value"] for one in told if one["name"] == "TaskDuration"))


def test_a_thousand_adapters_are_listed_and_patched(page: Page) -> None:
    page.call("Performance.enable", timeDomain="threadTicks")
    thousand(page, "registered")
    before = spent(page)
    page.evaluate("location.hash = '#/adapters'")
    page.until("document.querySelector('#count')?.textContent === '1000'")
    assert spent(page) - before < 300
    assert page.evaluate("document.querySelectorAll('[data-name]').length") == 50
    row = "document.querySelector('[data-name=many-0007]')"
    page.evaluate(f"{row}.querySelector('button').focus(); window.row = {row}")
    thousand(page, "resident")
    before = spent(page)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.until("document.querySelector('[data-name=many-0007]').textContent.includes('resident')")
    assert spent(page) - before < 150  # 20 where the machine is fast
    assert page.evaluate(f"{row} === window.row")  # patched, not drawn anew
    assert page.evaluate("document.activeElement.closest('[data-name]') === row")
    page.click(".pages button:last-child")
    page.until("document.querySelector('[data-name=many-0050]') !== null")
    page.evaluate("window.fetch = real")
