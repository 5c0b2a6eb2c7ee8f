"""The plots: what is in them, not how they look."""

import math
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest
from matplotlib.colors import to_rgba
from matplotlib.image import imread
from matplotlib.text import Text
from transformers import LlamaConfig

from families import tiny_model
from swaa.config import ConfigError, LayerRule, SWAAConfig
from swaa.geometry import build_geometry
from swaa.mask import oracle_mask
from swaa.recipes import load_recipe, recipe_names
from swaa.report import plots

RECIPES = {
    "full": SWAAConfig(),
    "naive": SWAAConfig(window=256),
    "sinks": SWAAConfig(window=256, sinks=10),
    "fa-decode": SWAAConfig(window=256, fa_decode=True),
    "sinks-odd-fa-decode": SWAAConfig(window=256, sinks=10, full_layers="odd", fa_decode=True),
    "sinks-fa-decode-tail": SWAAConfig(window=256, sinks=10, fa_decode=True, dense_tail=32),
    "mixed": SWAAConfig(window=128, full_layers=(7, 15), fa_decode=(3, 4, 20)),
}
ACCURACY = [0.97, 0.0, 0.0, 0.05, 0.91, 1.0, 0.42]
SECONDS = [1.85, 1.29, 1.31, 1.30, 1.60, 1.34, 1.55]
MODEL = LlamaConfig(num_hidden_layers=30, hidden_size=576, num_attention_heads=9, num_key_value_heads=3)


def rows(bars=True):
    made = []
    for name, accuracy, seconds in zip(RECIPES, ACCURACY, SECONDS, strict=True):
        row = {"recipe": name, "accuracy": accuracy, "prefill_seconds": seconds}
        if bars:
            row |= {"accuracy_low": max(accuracy - 0.1, 0), "accuracy_high": min(accuracy + 0.1, 1)}
        made.append(row)
    return made


def scatter(made, **options):
    return plots.accuracy_against_time(made, title="needle", time_label="seconds", **options)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def dots(axes):
    return [to_rgba(text.get_color()) for text in axes.texts if text.get_text() == "●"]


def markers(axes):
    """Name, marker, colour and place of each point."""
    drawn = [container.lines[0] for container in axes.containers]
    return {c.get_label(): (line, *line.get_xydata()[0]) for c, line in zip(axes.containers, drawn, strict=True)}


def label_boxes(axes):
    # An annotation's own extent has its leader line in it.
    return [Text.get_window_extent(text) for text in axes.texts]


def test_one_point_and_one_label_a_recipe():
    (axes,) = scatter(rows()).axes
    points = markers(axes)
    assert list(points) == list(RECIPES)
    assert sorted(texts(axes)) == sorted(RECIPES)
    for row in rows():
        assert points[row["recipe"]][1:] == (row["prefill_seconds"], row["accuracy"])
    assert axes.get_ylim() == (0, 1.05)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("seconds", "accuracy")
    for container, row in zip(axes.containers, rows(), strict=True):
        (bar,) = container.lines[2]
        assert bar.get_segments()[0][:, 1].tolist() == pytest.approx([row["accuracy_low"], row["accuracy_high"]])


def test_full_attention_stands_out():
    (axes,) = scatter(rows()).axes
    shapes = {name: line.get_marker() for name, (line, *_) in markers(axes).items()}
    assert [name for name, shape in shapes.items() if shape != shapes["naive"]] == ["full"]
    dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert len(dotted) == 2

    (other,) = scatter(rows(), full="naive").axes
    shapes = {name: line.get_marker() for name, (line, *_) in markers(other).items()}
    assert [name for name, shape in shapes.items() if shape != shapes["full"]] == ["naive"]
    assert not [line for line in scatter(rows(), full="nobody").axes[0].lines if line.get_linestyle() == ":"]


def test_pareto_front():
    (axes,) = scatter(rows()).axes
    (front,) = [line for line in axes.lines if line.get_label() == "Pareto front"]
    end = axes.get_xlim()[1]
    assert front.get_xydata().tolist() == [
        [1.29, 0],
        [1.30, 0],
        [1.30, 0.05],
        [1.34, 0.05],
        [1.34, 1],
        [end, 1],
        [end, 1],
    ]


def test_missing_intervals():
    assert not any(container.lines[2] for container in scatter(rows(bars=False)).axes[0].containers)
    made = rows(bars=False)
    made[0] |= {"accuracy_low": 0.9}
    made[1] |= {"accuracy_low": None, "accuracy_high": None}
    figure = scatter(made)
    drawn = [container for container in figure.axes[0].containers if container.lines[2]]
    assert [container.get_label() for container in drawn] == ["full"]
    assert "interval" in figure.texts[1].get_text()
    assert "interval" not in scatter(rows(bars=False)).texts[1].get_text()


@pytest.mark.parametrize("spread", [0.0, 0.02, 1.0])
def test_labels_do_not_overlap(spread):
    generator = random.Random(0)
    made = [
        {
            "recipe": f"{index:02}-{'a-long-recipe-name-of-length-30'[: generator.randint(5, 27)]}",
            "accuracy": generator.choice([0.0, 0.02, 0.9, 0.95, 1.0, generator.random()]),
            "prefill_seconds": 1 + spread * generator.random(),
        }
        for index in range(15)
    ]
    figure = scatter(made)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = label_boxes(axes)
    assert len(boxes) == 15
    for index, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[index + 1 :])
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1


def test_single_point():
    (axes,) = scatter(rows()[:1]).axes
    assert texts(axes) == ["full"]
    low, high = axes.get_xlim()
    assert low < 1.85 < high


def test_colours():
    names = [f"recipe {index}" for index in range(15)]
    assert list(plots.colours(names)) == names
    assert len(set(plots.colours(names).values())) == 15
    assert plots.colours([*names, "one more"])["one more"] == plots.colours(names)["recipe 0"]


def test_colours_agree_between_plots():
    expected = [to_rgba(colour) for colour in plots.colours(RECIPES).values()]
    (axes,) = scatter(rows()).axes
    assert [to_rgba(line.get_color()) for line, *_ in markers(axes).values()] == expected
    assert [dot for axes in plots.mask_grid(RECIPES, 30).axes for dot in dots(axes)] == expected
    assert dots(plots.layer_map(RECIPES, MODEL).axes[0]) == expected


@pytest.mark.parametrize(
    "rule",
    [LayerRule(), *(LayerRule(w, s, f, t) for w in (1, 5, 99) for s in (0, 3) for f in (False, True) for t in (0, 4))],
)
def test_reasons_are_the_oracles(rule):
    geometry = build_geometry(batch=1, past=0, rows=40, prompt_end=30)
    codes = plots.reasons(geometry, rule)
    names = list(plots.REASONS)
    seen = oracle_mask(geometry, rule)[0]
    assert ((codes > names.index("not visible")) == seen).all()
    future = ~oracle_mask(geometry, LayerRule())[0]
    assert ((codes == names.index("the future")) == future).all()
    if rule.window:
        near = oracle_mask(geometry, LayerRule(rule.window))[0]
        assert ((codes == names.index("in the window")) == near).all()
        assert (codes == names.index("sink token")).any() == (rule.sinks > 0 and rule.window < 40)


def test_mask_panels():
    figure = plots.mask_grid(RECIPES, 30, prompt=40, new=8)
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == len(RECIPES)
    full = [30, 0, 0, 0, 15, 0, 2]
    for axes, name, count in zip(panels, RECIPES, full, strict=True):
        assert name in texts(axes)
        assert any(f"{count} of 30 layers full" in text for text in texts(axes))
    assert "FA decode in 3" in texts(panels[-1])[0]
    (legend,) = figure.legends
    assert len(legend.get_texts()) == len(plots.REASONS) - 1
    assert "Schematic" in figure.texts[1].get_text()


def test_mask_panels_show_the_parts_of_their_recipe():
    figure = plots.mask_grid(RECIPES, 30)
    names = list(plots.REASONS)
    dense, sink, near = map(names.index, ("dense row: FA decode, tail or full layer", "sink token", "in the window"))
    for axes, (name, config) in zip(figure.axes, RECIPES.items(), strict=False):
        codes = axes.images[0].get_array()
        assert codes.shape == (64, 64)
        assert (codes == sink).any() == (config.sinks > 0)
        assert (codes == near).any() == (config.window is not None)
        assert (codes[48:] == dense).any() == (config.fa_decode is True or name == "full")
        assert (codes[:48] == dense).any() == (config.dense_tail > 0 or name == "full")


def test_schematic_keeps_order_and_small_values():
    recipes = {str(w): SWAAConfig(window=w, sinks=s) for w, s in [(3, 1), (2048, 10), (4096, 128)]}
    shown = [(axes.images[0].get_array()[47] == 4).sum() for axes in plots.mask_grid(recipes, 4).axes[:3]]
    assert shown[0] <= 3
    assert shown[0] < shown[1] < shown[2] < 48 / 2
    sinks = [(axes.images[0].get_array()[47] == 3).sum() for axes in plots.mask_grid(recipes, 4).axes[:3]]
    assert sinks[0] == 1
    assert sinks[0] < sinks[1] < sinks[2] < 48 / 4


def test_layer_map():
    figure = plots.layer_map(RECIPES, MODEL)
    (axes,) = figure.axes
    codes = axes.collections[0].get_array()
    assert codes.shape == (len(RECIPES), 30)
    kinds = list(plots.KINDS)
    counts = [[(row == index).sum() for index in range(len(kinds))] for row in codes]
    assert dict(zip(RECIPES, counts, strict=True)) == {
        "full": [0, 0, 0, 30, 0],
        "naive": [30, 0, 0, 0, 0],
        "sinks": [30, 0, 0, 0, 0],
        "fa-decode": [0, 30, 0, 0, 0],
        "sinks-odd-fa-decode": [0, 15, 0, 15, 0],
        "sinks-fa-decode-tail": [0, 30, 0, 0, 0],
        "mixed": [25, 3, 0, 2, 0],
    }
    assert codes[4, 1] == kinds.index("full")
    assert [name for name in texts(axes) if name in RECIPES] == list(RECIPES)
    assert [text for text in texts(axes) if text.endswith(" full")][:2] == ["30 full", "0 full"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [kinds[0], kinds[1], kinds[3]]


def test_layers_with_full_heads():
    config = SWAAConfig(window=8, full_layers=[0], full_heads={1: [0], 3: [1]}, fa_decode=[3])
    model = tiny_model("llama").config
    (axes,) = plots.layer_map({"heads": config}, model).axes
    part, kinds = "sliding, some heads full", list(plots.KINDS)
    assert [kinds[code] for code in axes.collections[0].get_array()[0]] == ["full", part, "sliding", part]
    assert "1 full, 2 in part" in texts(axes)
    (panel,) = [axes for axes in plots.mask_grid({"heads": config}, 4).axes if axes.images]
    assert any("1 of 4 layers full, FA decode in 1, some heads of 2" in text for text in texts(panel))
    # The window is drawn, though the commonest layers have full heads.
    assert (panel.images[0].get_array() == 1).any()


def test_layer_map_with_native_windows():
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    model = SimpleNamespace(num_hidden_layers=12, model_type="gemma3_text", layer_types=kinds * 2)
    figure = plots.layer_map({"full": SWAAConfig(), "naive": SWAAConfig(window=8)}, model)
    native = list(plots.KINDS).index("native window, left alone")
    assert (figure.axes[0].collections[0].get_array() == native).sum() == 20
    assert figure.legends[0].get_texts()[-1].get_text() == "native window, left alone"
    with pytest.raises(ConfigError, match="layers 0 to 11"):
        plots.layer_map({"deep": SWAAConfig(window=8, full_layers=(30,))}, model)


@pytest.mark.parametrize(("depth", "last"), [(2, "1"), (12, "11"), (30, "28"), (80, "75"), (400, "0")])
def test_layer_numbers_stay_readable(depth, last):
    model = SimpleNamespace(num_hidden_layers=depth, model_type="llama")
    (axes,) = plots.layer_map({"naive": SWAAConfig(window=8)}, model).axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels[-1] == last
    assert len(labels) <= 20


@pytest.mark.parametrize("kind", ["scatter", "masks", "layers"])
def test_png(tmp_path, kind):
    shipped = {name: load_recipe(name).config for name in recipe_names()}
    figure = {
        "scatter": lambda: scatter(rows()),
        "masks": lambda: plots.mask_grid(shipped, 30),
        "layers": lambda: plots.layer_map(shipped, MODEL),
    }[kind]()
    path = tmp_path / "figure.png"
    plots.save(figure, path)
    pixels = imread(path)
    assert pixels.shape[1] == 1350
    assert pixels.shape[0] == math.floor(figure.get_figheight() * 150)
    assert pixels[..., :3].std() > 0.05
    # Nothing is cut off: the outermost pixels are paper.
    edge = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
    assert all((side == 1).all() for side in edge)


def test_pyplot_is_not_imported(tmp_path):
    code = f"""
import sys
from swaa.config import SWAAConfig
from swaa.report import plots
rows = [{{"recipe": "full", "accuracy": 1.0, "prefill_seconds": 1.0}}]
plots.save(plots.accuracy_against_time(rows, title="", time_label=""), {str(tmp_path / "a.png")!r})
plots.save(plots.mask_grid({{"naive": SWAAConfig(window=8)}}, 2), {str(tmp_path / "b.png")!r})
print("matplotlib.figure" in sys.modules, "matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_without_matplotlib(monkeypatch):
    import importlib

    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("swaa.report.plots", "swaa.report.drawing"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'swaa\[demo\]'") as caught:
        importlib.import_module("swaa.report.plots")
    assert caught.value.name.startswith("matplotlib")
