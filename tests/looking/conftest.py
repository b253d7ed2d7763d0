"What several test files of this room need."
import matplotlib
import pytest
matplotlib.use("Agg")
import matplotlib.pyplot as plt
from vdistill.reid.training import Trainer, configure

TINY = {"data.identities": (6, 4, 6), "data.images_per_camera": 2, "epochs": 4, "identities_per_batch": 2, "images_per_identity": 1, "validate_every": 2,
        "width": 8, "features": 16, "z_features": 16, "hidden": (16,), "grid": (2, 2), "device": "cpu"}


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture
def untouched_settings():
    "Whoever asks for it leaves matplotlib's settings as they were."
    before = dict(plt.rcParams.copy())
    yield
    after = dict(plt.rcParams.copy())
    assert {k for k in before if before[k] != after[k]} == set()


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    "Two finished runs on one dataset; nobody writes into them."
    folder, dataset = tmp_path_factory.mktemp("runs"), None
    for method in ("baseline", "full"):
        trainer = Trainer(configure("synthetic", method, seed=3, **TINY), folder/method, dataset)
        trainer.fit()
        dataset = trainer.dataset
    return {method: folder/method for method in ("baseline", "full")}, dataset
