"""Draws images next to each other, each with a heading above and a few lines of text below."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ubend.drawing.panels import Font, load_font

_PAPER, _INK, _FAINT, _FRAME = (255, 255, 255), (30, 30, 30), (80, 80, 80), (200, 200, 200)
_GAP_PX, _TEXT_PX, _LINE_PX = 20, 14, 19
_HEADING_PX = 17


@dataclass(frozen=True)
class Card:
    """An image (H, W, 3) uint8, drawn at its own size, with a heading of one line and a text that is wrapped."""

    heading: str
    image: NDArray[np.uint8]
    text: str


def draw_cards(cards: Sequence[Card], columns: int) -> Image.Image:
    """Draw the cards in reading order, `columns` per row; a row is as high as its highest card."""
    font, bold = load_font(_TEXT_PX), load_font(_HEADING_PX)
    width = max(card.image.shape[1] for card in cards)
    rows = [cards[start : start + columns] for start in range(0, len(cards), columns)]
    texts = [[wrap_text(card.text, font, width) for card in row] for row in rows]
    image_px = [max(card.image.shape[0] for card in row) for row in rows]
    heights = [
        2 * _LINE_PX + high + _LINE_PX * max(map(len, lines)) + _GAP_PX
        for high, lines in zip(image_px, texts, strict=True)
    ]
    across = min(columns, len(cards))
    page = Image.new("RGB", (across * (width + _GAP_PX) + _GAP_PX, sum(heights) + _GAP_PX), _PAPER)
    draw, top = ImageDraw.Draw(page), _GAP_PX
    for row, lines, high, height in zip(rows, texts, image_px, heights, strict=True):
        for column, (card, text) in enumerate(zip(row, lines, strict=True)):
            left = _GAP_PX + column * (width + _GAP_PX)
            draw.text((left, top + _LINE_PX // 2), card.heading, fill=_INK, font=bold, anchor="lm")
            below = top + _LINE_PX + _LINE_PX // 4
            page.paste(Image.fromarray(card.image), (left, below))
            edge = (left - 1, below - 1, left + card.image.shape[1], below + card.image.shape[0])
            draw.rectangle(edge, outline=_FRAME)
            for index, line in enumerate(text):
                draw.text((left, below + high + _LINE_PX * (index + 0.7)), line, fill=_FAINT, font=font, anchor="lm")
        top += height
    return page


def wrap_text(text: str, font: Font, width_px: int) -> list[str]:
    """Wrap text into lines of at most `width_px`; a longer word has its own line."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width_px:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
