"""Which images a prediction lists."""

from __future__ import annotations

import tempfile
from pathlib import Path

from featurestore.promotion.listing import list_images
from tests.dataset.conftest import folder, nobody


def test_a_folder_that_cannot_be_listed_is_named() -> None:
    with tempfile.TemporaryDirectory() as text:  # The folders of pytest are closed to nobody.
        photos = folder(Path(text), cat=1, locked=1)
        photos.chmod(0o755)
        locked = photos / "locked"
        locked.chmod(0)
        with nobody():
            listed = list_images(photos)
        locked.chmod(0o755)
    assert [image.path for image in listed] == [str(photos / "cat" / "0.png"), str(locked)]
    assert listed[0].problem is None
    assert listed[1].problem == f"cannot read {str(locked)!r}: folder: Permission denied"
