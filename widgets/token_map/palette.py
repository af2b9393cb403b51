"""Colours for categories, told apart on light and on dark pages."""

import colorsys

# After Okabe and Ito, told apart by all eyes; the yellow and black of theirs vanish on one of the two grounds.
FEW = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6fd1", "#9a9a00")
GOLDEN = 0.61803398875  # a turn by this share of a circle never comes back to a hue
LUMINANCES = (0.16, 0.34, 0.24)  # of 0 for black to 1 for white; far enough from both grounds
SATURATION = 0.6
HALVINGS = 12  # of the range in which a lightness is sought


def palette(count: int) -> list[str]:
    """So many colours like '#0b84c6'; beyond eight they are hues a golden angle apart, in three luminances."""
    return [*FEW[:count], *(_turned(number) for number in range(count - len(FEW)))]


def luminance(red: float, green: float, blue: float) -> float:
    """How light a colour is to the eye (WCAG 2.2), of parts in [0, 1]."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _turned(number: int) -> str:
    hue, low, high = (0.03 + number * GOLDEN) % 1, 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        dark = luminance(*colorsys.hls_to_rgb(hue, middle, SATURATION)) < LUMINANCES[number % 3]
        low, high = (middle, high) if dark else (low, middle)
    return "#{:02x}{:02x}{:02x}".format(*(round(255 * part) for part in colorsys.hls_to_rgb(hue, low, SATURATION)))
