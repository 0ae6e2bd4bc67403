"""The pages in a real Chromium: with nothing, little and much recorded, in both themes."""

from __future__ import annotations

import re
import time

import browser as chromium
import gallery
import httpx
import numpy as np
import pytest
from playwright.sync_api import expect

from flerm_core.records.recording import Ending
from tests.browser.conftest import EVIL, Gallery, Open

FAMILY = "/families/team/decoder"
SHIFT = """new Promise(done => new PerformanceObserver(list =>
  done(list.getEntries().filter(each => !each.hadRecentInput)
    .reduce((sum, each) => sum + each.value, 0))
).observe({type: "layout-shift", buffered: true}) || setTimeout(() => done(0), 200))"""


def paths(found: Gallery) -> dict[str, str]:
    ids = found.ids
    return {
        "families": "/",
        "family": FAMILY,
        "recording": f"/recordings/{ids['base']}",
        "tensors": f"/recordings/{ids['base']}?pattern=layers.0.*",
        "matched": f"/recordings/{ids['matched']}?step=301",
        "running": f"/recordings/{ids['running']}",
        "words": "/glossary",
        "compare": f"/compare?ids={ids['base']},{ids['matched']},{ids['plain']}",
        "compare nothing": "/compare",
        "match": f"/match?family=team/decoder&lr=0.004&recording={ids['plain']}",
        "match nothing": "/match",
        "REST": "/docs",
    }


PAGES = [
    "families",
    "family",
    "recording",
    "matched",
    "running",
    "words",
    "compare",
    "match",
    "REST",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("tensors", "compare nothing", "match nothing")
    ),
]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_accessible_in_both_themes_and_fits_a_phone(
    open_page: Open, filled: Gallery, name: str
):
    assert chromium.AXE.exists(), "axe-core is missing: make browser-tools"
    page = open_page(filled.url + paths(filled)[name], bypass_csp=True)
    for dark in (False, True):
        if dark:  # and on a phone
            page.emulate_media(color_scheme="dark")
            page.set_viewport_size({"width": 390, "height": 844})
            page.wait_for_timeout(300)  # colours fade into each other, plots are drawn anew
            chromium.wait_until_drawn(page)
        else:
            page.add_script_tag(path=chromium.AXE)
        # What swagger-ui and plotly.js draw is theirs; ours is all that stands around it.
        # The theme and the width change colours and what scrolls, and none of the other rules.
        rules = "color-contrast scrollable-region-focusable target-size" if dark else ""
        found = page.evaluate(
            "rules => axe.run({exclude: [['#swagger'], ['.drawing']]},"
            " rules.length ? {runOnly: rules} : {})",
            rules.split(),
        )
        assert [
            (each["id"], [node["html"][:120] for node in each["nodes"]])
            for each in found["violations"]
        ] == []
        if name == "REST":
            expect(page.locator("html.dark-mode")).to_have_count(int(dark))
        elif dark:
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
                "it scrolls sideways on a phone"
            )


def test_without_recordings_every_page_says_what_to_run(open_page: Open, empty: Gallery):
    address = f"--registry grpc://{empty.registry.grpc}"
    expect(open_page(empty.url + "/", scripts=False).locator("pre")).to_contain_text(address)
    expect(open_page(empty.url + "/match", scripts=False).locator("pre")).to_contain_text(address)
    empty.store.register_family("waiting")
    page = open_page(empty.url + "/families/waiting", scripts=False)
    expect(page.locator("pre")).to_contain_text(
        'FLeRM.record(model, optimizer, probe=batches, family="waiting"'
    )


def test_the_way_from_the_first_page_to_the_rate_to_use(open_page: Open, filled: Gallery):
    page = open_page(filled.url + "/")
    page.get_by_role("region", name="List of families").get_by_role(
        "link", name="team/decoder"
    ).click()
    expect(page.locator(".use")).to_have_text("Use 0.0038")
    chromium.wait_until_drawn(page)
    labels = page.locator(".annotation-text").all_text_contents()
    assert sorted(labels) == ["base", "base", "matched", "plain", "×4", "×4"]
    expect(page.locator(".answer")).to_contain_text(
        "Carried over to width ×4 by matching, the optimum lies"
    )
    row = page.get_by_role("region", name="Transfer").get_by_role("row").filter(has_text="matched")
    found = httpx.get(f"{filled.url}/api/v1/families/team/decoder/transfer").json()["rows"]
    matched = next(each for each in found if each["variant"] == "matched")
    expect(row).to_contain_text(f"{matched['shift']:+.2f}")
    expect(row).to_contain_text(f"{100 * matched['cost']:+.1f} %".replace("-", "−"))
    page.get_by_role("link", name="Match a bigger model to it").click()
    expect(page.locator("input[name=lr]")).to_have_value(re.compile(r"^0\.0038"))
    page.go_back()
    expect(page).to_have_url(filled.url + FAMILY)
    page.get_by_role("link", name="FLeRM registry").click()
    expect(page).to_have_url(filled.url + "/")


def test_the_table_is_filtered_by_its_address(open_page: Open, filled: Gallery):
    page = open_page(filled.url + FAMILY, scripts=False)
    rows = page.get_by_role("region", name="List of recordings").locator("tbody tr")
    expect(rows).to_have_count(26)
    page.get_by_role("combobox", name="Variant").select_option("matched")
    page.get_by_role("region", name="List of recordings").locator("xpath=../..").get_by_role(
        "button", name="Show", exact=True
    ).click()
    expect(rows).to_have_count(5)
    assert "variant=matched" in page.url
    page.go_back()
    expect(rows).to_have_count(26)
    page.get_by_text("Coverage: learning rate × seed").click()
    page.get_by_role("region", name="Coverage").get_by_role(
        "link", name="0.004", exact=True
    ).click()
    expect(rows).to_have_count(6)
    page = open_page(f"{filled.url}{FAMILY}?status=failed", scripts=False)
    expect(page.get_by_text("No recording matches this filter.")).to_be_visible()


def test_the_table_is_sorted_and_its_columns_are_chosen(open_page: Open, filled: Gallery):
    page = open_page(f"{filled.url}{FAMILY}?status=completed", scripts=False)
    region = page.get_by_role("region", name="List of recordings")
    heads = [each.strip() for each in region.locator("thead th").all_text_contents()]
    assert heads == [
        "Compare", "Recording", "Final loss", "Status", "Learning rate", "Seed", "width",
        "Steps run", "Rows", "Started",
    ]  # fmt: skip
    for head in ("Steps run", "Rows"):
        region.get_by_role("link", name=head).focus()
        page.keyboard.press("Enter")
        expect(region.locator("th[aria-sort=ascending]")).to_have_text(re.compile(head))
    region.get_by_role("link", name="Final loss").click()
    losses = [float(each) for each in region.locator("tbody td:nth-child(3)").all_text_contents()]
    assert losses == sorted(losses)
    region.get_by_role("link", name="Final loss").click()
    assert "sort=-loss" in page.url
    assert "status=completed" in page.url
    losses = [float(each) for each in region.locator("tbody td:nth-child(3)").all_text_contents()]
    assert losses == sorted(losses, reverse=True)
    expect(region.locator("th[aria-sort=descending]")).to_have_text(re.compile("Final loss"))


def test_a_point_of_the_plot_leads_to_its_recordings(open_page: Open, filled: Gallery):
    page = open_page(filled.url + FAMILY)
    page.locator(".scatterlayer .trace").first.locator(".point").nth(1).click(force=True)
    page.wait_for_url("**lr_min=0.002&lr_max=0.002**")
    expect(page.get_by_role("region", name="List of recordings").locator("tbody tr")).to_have_count(
        5
    )


def test_tensors_are_drawn_on_demand(open_page: Open, filled: Gallery):
    page = open_page(f"{filled.url}/recordings/{filled.ids['base']}")
    page.get_by_label("Single tensors").fill("layers.1.mlp.*")
    page.get_by_role("button", name="Draw").click()
    chromium.wait_until_drawn(page)
    expect(page.get_by_text("2 tensors drawn")).to_be_visible()
    assert {"10", "20"} <= set(page.locator(".ytick text").all_text_contents())
    assert {"layers.1.mlp.up.weight", "layers.1.mlp.down.weight"} <= set(
        page.locator(".legendtext").all_text_contents()
    )
    page.get_by_role("link", name="readout.weight").click()
    page.wait_for_url("**pattern=readout.weight#fslr")
    page.go_back()
    expect(page.get_by_text("2 tensors drawn")).to_be_visible()


def test_a_matched_run_says_at_which_rate_a_tensor_ran_and_why(open_page: Open, filled: Gallery):
    page = open_page(f"{filled.url}/recordings/{filled.ids['matched']}")
    asked = f"{filled.url}/api/v1/recordings/{filled.ids['matched']}/rates"
    found = httpx.get(asked, params={"pattern": "layers.1.mlp.down.weight"}).json()
    tensor = {name: f"{values[0]:.4g}" for name, values in found["tensors"][0].items()
              if name in ("learning_rate", "multiplier", "target", "fslr")}  # fmt: skip
    section = page.get_by_role("region", name="Learning rate of every tensor, and why")
    expect(page.locator(".lead")).to_contain_text("a bigger model, width ×4, trained by")
    expect(section).to_contain_text("carried to this depth by the rule coherent")
    row = section.get_by_role("row").filter(has_text="layers.1.mlp.down.weight")
    cells = row.get_by_role("cell").all_text_contents()
    assert cells[:4] == [
        tensor["learning_rate"],
        f"× {tensor['multiplier']}",
        tensor["target"],
        tensor["fslr"],
    ]
    page.get_by_label("At step").select_option("301")
    section.get_by_role("combobox", name="Tensors, by name").fill("layers.1.mlp.*")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**step=301&pattern=layers.1.mlp.*#rates")
    expect(section.locator("summary")).to_have_text("2 of 14 tensors at step 301")
    expect(section).to_contain_text("as they were at step 1, where the run was last matched")
    section.get_by_role("link", name="seed 0").click()
    expect(page).to_have_url(f"{filled.url}/recordings/{filled.ids['base']}")


def test_recordings_are_chosen_and_compared(open_page: Open, filled: Gallery):
    page = open_page(f"{filled.url}{FAMILY}?lr_min=0.004&lr_max=0.004&role=scaled")
    for box in page.get_by_role("checkbox").all():
        box.check()
    page.get_by_role("button", name="Compare selected").click()
    chromium.wait_until_drawn(page)
    expect(page.locator("[data-figure]")).to_have_count(1)
    differences = page.get_by_role("region", name="Table of differences")
    expect(differences.get_by_role("row").nth(1)).to_have_text(
        re.compile("variant.*(matched|plain)")
    )
    expect(page.get_by_role("heading", level=2).last).to_contain_text("width ×4, rate 0.004")
    page.get_by_role("link", name="The other way round").click()
    chromium.wait_until_drawn(page)


def test_the_matcher_gives_rates_and_the_code_that_applies_them(open_page: Open, filled: Gallery):
    page = open_page(f"{filled.url}/match")
    page.get_by_label("Family").select_option("team/decoder")
    page.wait_for_url("**/match?family=team%2Fdecoder")
    page.get_by_role("textbox", name="Learning rate").fill("0.004")
    page.get_by_label("tensors, one a line").fill("embed.weight 40\nreadout.weight 10")
    page.get_by_role("button", name="Match").click()
    measured = {"embed.weight": 40, "readout.weight": 10}
    asked = {"family": "team/decoder", "lr": 0.004, "measured": measured}
    found = httpx.post(f"{filled.url}/api/v1/match", json=asked).json()
    rows = page.get_by_role("region", name="Learning rates").locator("tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text(f"{found['learning_rates']['embed.weight']:.4g}")
    expect(page.locator("#code")).to_contain_text("    lr=0.004,\n    registry=")
    expect(page.locator("#code")).to_contain_text(f'registry="grpc://{filled.registry.grpc}"')
    expect(page.locator("#by-hand")).to_contain_text('"embed.weight": ')
    assert "tensors=embed.weight" in page.url
    page.get_by_label("Step measured at").fill("301")
    page.get_by_role("button", name="Match").click()
    found = httpx.post(f"{filled.url}/api/v1/match", json={**asked, "step": 301}).json()
    expect(page.get_by_role("heading", name="2 tensors at 0.004, step 301")).to_be_visible()
    expect(rows.first).to_contain_text(f"{found['learning_rates']['embed.weight']:.4g}")
    expect(page.locator("#code")).to_contain_text("start=301")


def test_the_matcher_takes_a_recording_and_its_code_is_copied_without_permission(
    open_page: Open, filled: Gallery
):
    page = open_page(f"{filled.url}/match")
    page.get_by_label("Family").select_option("team/decoder")
    page.wait_for_url("**/match?family=team%2Fdecoder")
    page.get_by_label("A recording of the big model").select_option(filled.ids["plain"])
    page.get_by_role("button", name="Match").click()
    expect(page.get_by_role("heading", name="14 tensors at 0.0038, step 1")).to_be_visible()
    expect(page.locator("#by-hand")).to_contain_text("torch.optim.Adam(")
    # A page that was not opened by https has no clipboard, and a browser may refuse the page.
    page.evaluate(
        "() => { navigator.clipboard.writeText = async () => { throw new Error('refused'); }; }"
    )
    page.get_by_role("button", name="Copy Hugging Face Trainer").click()
    expect(page.get_by_role("button", name="Copied Hugging Face Trainer")).to_be_visible()
    page.get_by_role("link", name="Matcher").first.click()
    page.get_by_label("Family").select_option("team/decoder")
    page.wait_for_url("**/match?family=team%2Fdecoder")
    page.get_by_label("Or its tensors, one a line").focus()
    page.keyboard.press("Control+V")
    pasted = re.compile(r'mode="match",\n.*family="team', re.S)
    expect(page.locator("textarea")).to_have_value(pasted)


def test_a_model_too_long_for_an_address_is_posted(open_page: Open, large: Gallery):
    listed = gallery.parameters(83)
    page = open_page(f"{large.url}/match?family=large/model&lr=0.004")
    page.get_by_label("tensors, one a line").fill("\n".join(f"{name} 10" for name in listed.names))
    page.get_by_role("button", name="Match").click()
    expect(page.get_by_text("500 tensors at 0.004")).to_be_visible()


def test_a_wrong_question_is_answered_in_words(open_page: Open, filled: Gallery):
    page = open_page(f"{filled.url}/match?family=team/decoder&lr=fast", scripts=False, ok=422)
    expect(page.get_by_role("alert")).to_contain_text("lr: 'fast' is no number")
    page = open_page(f"{filled.url}/match?family=team/decoder&step=-3", scripts=False, ok=422)
    expect(page.get_by_role("alert")).to_contain_text("step: '-3' is no step")
    page = open_page(
        f"{filled.url}/match?family=team/decoder&tensors=conv.weight+1", scripts=False, ok=404
    )
    expect(page.get_by_role("alert")).to_contain_text("conv.weight not matched by the base")
    page = open_page(f"{filled.url}/families/none", scripts=False, ok=404)
    expect(page.locator(".lead")).to_contain_text("family 'none' is not in this registry")


def test_words_from_outside_are_never_markup_and_fit_a_phone(open_page: Open, filled: Gallery):
    for path in (
        "/families/evil",
        f"/recordings/{filled.ids['evil']}",
        f"/recordings/{filled.ids['evil']}?pattern=*",
    ):
        page = open_page(filled.url + path)
        expect(page.locator("img[src=x]")).to_have_count(0)
        assert page.title() != "1"
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    assert EVIL in page.locator(".legendtext").all_text_contents()


def test_a_running_recording_is_seen_growing_and_ending(open_page: Open, filled: Gallery):
    listed = gallery.parameters()
    running = gallery.record(
        filled.store, "live", lr=0.004, status="running", steps=np.array([], int)
    )
    page = open_page(f"{filled.url}/recordings/{running}")
    expect(page.get_by_text("No measurement yet")).to_be_visible()
    expect(page.locator("#live-word")).to_have_text("live")
    expect(page.locator("[data-live=rows]")).to_have_text("0")
    gallery.append(filled.store, running, listed, np.array([1]))
    expect(page.locator("[data-live=rows]")).to_have_text("1", timeout=10_000)
    gallery.append(filled.store, running, listed, np.array([101, 201]))
    expect(page.locator("[data-live=rows]")).to_have_text("3", timeout=10_000)
    expect(page.locator("[data-live=last_step]")).to_have_text("201")
    expect(page.locator(".drawing .scatterlayer").first).to_be_visible(timeout=10_000)
    expect(page.get_by_text("No measurement yet")).to_be_hidden()
    filled.store.finish(running, 0, Ending(final_loss=1.25))
    expect(page.locator("[data-live=status]")).to_have_text("completed", timeout=10_000)
    expect(page.locator("[data-live=final_loss]")).to_have_text("1.2500")
    expect(page.locator("#live-word")).to_have_text("")


def test_plots_take_the_theme_of_the_page(open_page: Open, filled: Gallery):
    page = open_page(f"{filled.url}{FAMILY}")
    tick = page.locator(".xtick text").first
    light = tick.evaluate("each => getComputedStyle(each).fill")
    page.emulate_media(color_scheme="dark")
    expect(page.locator("[data-figure]")).to_have_attribute("data-drawn", "2")
    assert (
        page.locator(".xtick text").first.evaluate("each => getComputedStyle(each).fill") != light
    )


def test_the_keyboard_reaches_everything(open_page: Open, filled: Gallery):
    page = open_page(filled.url + FAMILY)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    reached = set()
    for _ in range(90):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.name || "
                "document.activeElement.textContent.trim().slice(0, 20)"
            )
        )
    assert {"FLeRM registry", "Matcher", "variant", "lr_min", "Show", "ids"} <= reached


@pytest.mark.parametrize("which", ["recording", "family"])
def test_much_is_as_quick_as_little(open_page: Open, large: Gallery, which: str):
    path = f"/recordings/{large.ids['large']}" if which == "recording" else "/families/large/sweep"
    started = time.perf_counter()
    page = open_page(large.url + path)
    drawn = time.perf_counter() - started
    paint = (
        page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
    )
    shift = page.evaluate(SHIFT)
    sizes = page.evaluate(
        "performance.getEntriesByType('resource')"
        ".filter(e => /figure/.test(e.name)).map(e => e.decodedBodySize)"
    )
    print(
        f"{which}: first paint {paint:.2f} s, drawn {drawn:.2f} s, figures {sizes} bytes, "
        f"layout shift {shift:.4f}"
    )
    # Times depend on what else runs on this machine, so they are printed, not checked.
    assert sizes
    assert max(sizes) <= 1_000_000
    assert shift < 0.01
