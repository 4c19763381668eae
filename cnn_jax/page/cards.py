"""The prediction for one picture as HTML: pictures, verdict, and the probabilities as bars."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from cnn_jax.page.wording import Verdict, percent

# Colours are mixed from the text colour, so that they suit both the light and the dark theme.
STYLE = """<style>
/* Why Streamlit refuses a file: otherwise only for screen readers, and where the pointer rests. */
.stFileChip[aria-invalid] { flex-wrap: wrap; }
.stFileChip[aria-invalid] [role=alert] { position: static; flex: 1 0 100%; width: auto; height: auto; clip: auto;
  overflow: visible; white-space: normal; margin: 0; padding: 0 0.4rem 0.2rem; font-size: 0.85rem; }
.cnn-card { container-type: inline-size; border: 1px solid color-mix(in srgb, currentColor 14%, transparent);
  border-radius: 1rem; padding: 1.25rem; background: color-mix(in srgb, currentColor 2%, transparent); }
.cnn-body { display: grid; gap: 1.1rem 1.5rem; grid-template-columns: 21.5rem minmax(0, 1fr); }
.cnn-pictures { display: grid; gap: 0.9rem; grid-template-columns: repeat(2, minmax(0, 1fr)); align-content: start; }
.cnn-pictures figure { margin: 0; }
.cnn-pictures img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 0.6rem;
  background: color-mix(in srgb, currentColor 6%, transparent); }
.cnn-pictures img.crisp { image-rendering: pixelated; }
.cnn-pictures figcaption { font-size: 0.8rem; line-height: 1.35; opacity: 0.7; margin-top: 0.4rem;
  overflow-wrap: anywhere; }
.cnn-prediction h3 { font-size: 1.3rem; font-weight: 600; line-height: 1.25; margin: 0 0 0.4rem; padding: 0;
  overflow-wrap: anywhere; }
.cnn-prediction p { margin: 0 0 0.35rem; font-size: 0.9rem; line-height: 1.45; opacity: 0.85; }
.cnn-prediction p.note { font-size: 0.8rem; opacity: 0.6; }
.cnn-prediction ol.cnn-bars { display: grid; grid-template-columns: fit-content(8rem) minmax(3rem, 1fr) max-content;
  gap: 0.5rem 0.8rem; align-items: center; align-content: start; list-style: none; margin: 0.8rem 0 0; padding: 0;
  font-size: 0.9rem; line-height: 1.2; }
.cnn-bars li { display: contents; }
.cnn-bars li span { margin: 0; }
.cnn-bars .name { overflow-wrap: anywhere; }
.cnn-bars .share { text-align: right; font-variant-numeric: tabular-nums; opacity: 0.8; }
.cnn-bars .track { height: 0.55rem; border-radius: 0.3rem; overflow: hidden;
  background: color-mix(in srgb, currentColor 9%, transparent); }
.cnn-bars .fill { display: block; height: 100%; border-radius: 0.3rem; background: #3f9299; opacity: 0.45; }
.cnn-bars .first .fill { opacity: 1; }
.cnn-bars .first .name { font-weight: 600; }
.unfamiliar .cnn-bars .fill { background: #9a9488; }
.three .cnn-body, .three .cnn-prediction { grid-template-columns: minmax(0, 1fr); }
.three .cnn-pictures { grid-template-columns: repeat(3, minmax(0, 1fr)); }
@container (min-width: 34rem) {
  .three .cnn-prediction { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 2rem; }
  .three .cnn-prediction ol.cnn-bars { margin-top: 0.3rem; }
}
@container (max-width: 34rem) {
  .cnn-body, .three .cnn-body { grid-template-columns: minmax(0, 1fr); }
  .cnn-prediction { order: -1; }
  .three .cnn-pictures { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .three figure:first-child { grid-column: 1 / -1; }
  .three figure:first-child img { aspect-ratio: 16 / 10; }
}
@media (max-width: 34rem) {
  .stMainBlockContainer { padding: 1.2rem 1rem 2rem; }
  .stMainBlockContainer h1 { font-size: 1.45rem; padding: 0; }
  .stMainBlockContainer [data-testid="stFileUploaderDropzone"] { padding: 0.5rem 0.75rem; min-height: 0; }
  .stMainBlockContainer [data-testid="stButtonGroup"] button { flex: none; }
  .cnn-card { padding: 0.9rem; }
}
</style>"""


def card(
    pictures: Sequence[tuple[str, str, bool]], verdict: Verdict, shares: Sequence[tuple[str, float]], note: str
) -> str:
    """Returns the card of one picture.

    Args:
      pictures: data URI (see `data_uri`), caption, and whether to show its pixels without smoothing.
      verdict: the prediction in words.
      shares: names and probabilities of the classes to show, the most probable first.
      note: the last line.
    """
    kinds = ["cnn-card", *["unfamiliar"] * (not verdict.familiar), *["three"] * (len(pictures) > 2)]
    bars = "".join(_bar(name, share, place == 0) for place, (name, share) in enumerate(shares))
    return (
        f'<article class="{" ".join(kinds)}"><div class="cnn-body">'
        f'<div class="cnn-pictures">{"".join(_figure(*picture) for picture in pictures)}</div>'
        f'<div class="cnn-prediction"><div><h3>{html.escape(verdict.headline)}</h3>'
        f'<p>{html.escape(verdict.explanation)}</p><p class="note">{html.escape(note)}</p></div>'
        f'<ol class="cnn-bars">{bars}</ol></div></div></article>'
    )


def data_uri(image: Image.Image | np.ndarray, kind: str = "PNG") -> str:
    """Returns an image as a data URI, so that no file is needed.

    Args:
      image: RGB; an array is uint8 `[height, width, 3]`.
      kind: "PNG" (lossless) or "JPEG" (smaller).
    """
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _figure(source: str, caption: str, crisp: bool) -> str:
    caption = html.escape(caption)
    look = ' class="crisp"' if crisp else ""
    return f'<figure><img{look} src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def _bar(name: str, share: float, first: bool) -> str:
    # Browsers draw a width of NaN as a full bar.
    width = 100 * share if np.isfinite(share) else 0
    amount = percent(share) if np.isfinite(share) else "?"
    return (
        f'<li{" class=first" if first else ""}><span class="name">{html.escape(name)}</span>'
        f'<span class="track"><span class="fill" style="width:{width:.1f}%"></span></span>'
        f'<span class="share">{html.escape(amount)}</span></li>'
    )
