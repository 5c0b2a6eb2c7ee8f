"""Colours and names that all pictures share, PNG and HTML. No matplotlib."""

from collections.abc import Iterable

from swaa.config import LayerRule

# Okabe and Ito without the yellow that white paper swallows, then Tol's muted hues that are not too close to them.
PALETTE = (
    *("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#999933", "#332288"),
    *("#44AA99", "#AA4499", "#8C564B", "#888888", "#117733"),
)
# The same hues on a dark ground: lighter, and in simulated colour-blind vision as far apart as those above.
DARK_PALETTE = (
    *("#FFFFFF", "#3D9BE9", "#FF7F32", "#1FBF8F", "#DE7FBE", "#A6DBFF", "#F2C14E", "#D9507F", "#B8B84A", "#8B7CF0"),
    *("#5FD6C4", "#D176CF", "#C08A7C", "#9AA3AD", "#4E9F62"),
)
# What a layer does. Blues darken with what is visible, so they survive any colour vision and a grey printer.
KINDS = {
    "sliding": "#A9D0EC",
    "sliding with FA decode": "#4A94CE",
    "sliding, some heads full": "#2C6AA3",
    "full": "#173B68",
    "native window, left alone": "#D4D4D4",
}
DARK_KINDS = {
    "sliding": "#274B6D",
    "sliding with FA decode": "#3F8CCB",
    "sliding, some heads full": "#8BBBE6",
    "full": "#CFE6FA",
    "native window, left alone": "#4B525B",
}


def colours(names: Iterable[str]) -> dict[str, str]:
    """Give every recipe its colour, by its place in the order; after fifteen they start again."""
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(dict.fromkeys(names))}


def layer_kind(rule: LayerRule | None) -> str:
    """Return the entry of `KINDS` that a layer with this rule is."""
    if rule is None:
        return "native window, left alone"
    if rule.window is None:
        return "full"
    if rule.full_heads:
        return "sliding, some heads full"
    return "sliding with FA decode" if rule.fa_decode else "sliding"
