"""A loader tells what the chosen files are, before anything runs."""

from playwright.sync_api import Page, Route, expect

from .browser import Pages, look_at

SAID = "Anima, 28 blocks, bf16, 4.18 GB"
CHOOSE = """() => {
  const node = LiteGraph.createNode("AnimaTransformerLoader");
  app.graph.add(node);
  const widget = node.widgets.find(({ name }) => name === "transformer");
  widget.value = "chosen.safetensors";
  widget.callback(widget.value);
  return String(node.id);
}"""


def test_a_choice_is_told_below_the_loader(pages: Pages):
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(json={"text": SAID})

    page: Page = pages.open()
    page.evaluate("app.graph.clear()")
    page.route("**/anima_trainer/describe?*", answer)
    node = page.evaluate(CHOOSE)
    look_at(page, node, 1.0)
    expect(page.get_by_text(SAID)).to_be_visible()
    assert len(asked) == 1 and asked[0].endswith("describe?kind=diffusion_models&name=chosen.safetensors")
