"Where the tests find real visible / infrared pairs."
import os
from pathlib import Path

import pytest


def find_pairs_dir():
    "The folder of real pairs: VDISTILL_PAIRS, else ../shared/roadscene beside the checkout; a reason where there is none."
    named = os.environ.get("VDISTILL_PAIRS")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "roadscene"
    if (folder / "visible").is_dir() and (folder / "infrared").is_dir(): return folder, None
    return None, f"no real pairs: {folder} has no visible/ and infrared/; set VDISTILL_PAIRS to a folder that has"


@pytest.fixture(scope="session")
def pairs_dir():
    folder, reason = find_pairs_dir()
    if folder is None: pytest.skip(reason)
    return folder
