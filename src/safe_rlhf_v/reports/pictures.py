"""Pictures inside a page: decoded within the limits of the library, scaled down, without metadata, within a budget of bytes."""

import base64
import io
from typing import NamedTuple

from markupsafe import Markup
from PIL import Image as PILImage

from safe_rlhf_v.records.user_files import FileError, read_bounded
from safe_rlhf_v.reports.blocks import Picture
from safe_rlhf_v.shards.images import MAX_BYTES, ImageError, load_rgb

SIDE = 320
BUDGET = 8_000_000


class Embedded(NamedTuple):
    """A picture as it stands in the page.

    Attributes:
        uri: Data URI, which pages write unchanged; empty if the picture cannot be shown.
        width: Pixels.
        height: Pixels.
        problem: Why it cannot be shown.
    """

    uri: str
    width: int = 0
    height: int = 0
    problem: str = ""


class Thumbnails:
    """Makes the pictures of one page."""

    def __init__(self, side: int = SIDE, budget: int = BUDGET) -> None:
        """Choose the limits.

        Args:
            side: Longest side in pixels; smaller pictures are not enlarged.
            budget: Number of bytes of all pictures together; a picture that does not fit any more is left out.
        """
        self.side = side
        self.left = budget

    def __call__(self, picture: Picture) -> Embedded:
        """The picture, or why it cannot be shown."""
        if self.left <= 0:
            return Embedded("", problem="left out: the page has no room for more pictures")
        try:
            source = picture.source
            data = source if isinstance(source, bytes) else read_bounded(source, MAX_BYTES)
            rgb, _ = load_rgb(data)
        except (FileError, ImageError) as error:
            return Embedded("", problem=str(error))
        # A ratio of 1 : 20000 must not give a side of 0 pixels; Pillow keeps at least 1.
        rgb.thumbnail((self.side, self.side), PILImage.Resampling.LANCZOS)
        buffer = io.BytesIO()
        rgb.save(buffer, "JPEG", quality=85)
        # Base64 of our own bytes holds nothing to escape, and as markup it is not cut like a text from data.
        uri = Markup("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode())
        if len(uri) > self.left:
            self.left = 0
            return Embedded("", problem="left out: the page has no room for more pictures")
        self.left -= len(uri)
        return Embedded(uri, rgb.width, rgb.height)
