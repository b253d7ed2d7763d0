"A run that is watched, stopped and resumed from a notebook loses nothing."
import threading
import time
import numpy as np
import pandas as pd
import pytest
import torch
from vdistill.looking import dashboard as D
from vdistill.reid.runs import load_run, read_config
from vdistill.reid.training import Trainer


def plain(history): return pd.DataFrame(history).drop(columns="seconds")


def test_buttons_do_what_they_say(runs, tmp_path):
    board = D.Dashboard(Trainer(read_config(runs[0]["full"]), tmp_path/"run", runs[1]))
    assert (board.start.disabled, board.halt.disabled, board.start.description) == (False, True, "Start")
    started, halted = threading.Event(), threading.Event()
    with pytest.MonkeyPatch.context() as patch: # the first step ends when the stop has been asked for
        patch.setattr(D._Steps, "update", lambda self, update=D._Steps.update: (started.set(), halted.wait(600), update(self)))
        board.start.click()
        assert started.wait(600) and board.halt.disabled is False and board.start.disabled
        board.start.click()   # a second run is not begun
        board.halt.click(); halted.set(); board.wait(600)
    assert board.start.description == "Go on" and board.halt.disabled and len(board.history) < 4
    picture = board.image.value
    board.beside.value = "losses"
    assert board.image.value != picture


def test_watching_another_run(runs, tmp_path):
    config, dataset = read_config(runs[0]["full"]), runs[1]
    other = Trainer(config, tmp_path/"run", dataset)
    board = D.Dashboard(tmp_path/"run", every=.01)
    assert len(board.numbers) == 0 and "0 of 4" in board.status.value
    blank, board.watch.value = board.image.value, True
    other.fit()
    for _ in range(30_000):
        if "4 of 4" in board.status.value: break
        time.sleep(.02)
    board.watch.value = False
    assert board.image.value != blank and "4 of 4" in board.status.value
    pd.testing.assert_frame_equal(plain(board.numbers), plain(other.history), rtol=1e-12)


def test_a_folder_in_use_is_left_alone(runs, tmp_path):
    trainer = Trainer(read_config(runs[0]["full"]), tmp_path/"run", runs[1])
    row = next(others := trainer.epochs())
    assert row["epoch"] == 0
    trainer.save()
    board = D.Dashboard(tmp_path/"run", runs[1])
    board.go(); board.wait(600)
    assert "another process" in board.state and board.trainer is None
    list(others)
    assert trainer.epoch == 4
    board.go(); board.wait(600)   # reads the folder again, and finds nothing left to do
    assert "Finished" in board.state and len(board.history) == 4


def test_an_error_while_training_is_told(runs):
    board = D.Dashboard(Trainer(read_config(runs[0]["full"]), None, runs[1]))
    def fail(*args): raise RuntimeError("no more <disk>")
    board.trainer.train_step = fail
    board.go(); board.wait(600)
    assert not board.running and "RuntimeError: no more <disk>" in board.state and "&lt;disk&gt;" in board.status.value


def test_memory_that_runs_out_is_told_as_elsewhere(runs):
    board = D.Dashboard(Trainer(read_config(runs[0]["full"]), None, runs[1]))
    def fail(*args): raise torch.OutOfMemoryError("CUDA out of memory")
    board.trainer.train_step = fail
    board.go(); board.wait(600)
    assert "out of memory with batches of" in board.state and "OutOfMemoryError" not in board.state


def test_a_baseline_has_no_divergences(runs):
    board = D.Dashboard(runs[0]["baseline"])
    figure = board.twin([dict(beside=b) for b in D.RIGHT_PANELS])
    assert "no divergence in this run" in [t.get_text() for t in figure.axes[0].texts] and len(figure.axes) == 6
    assert figure.axes[1].get_ylabel() == "mAP, validation (%)" and len(figure.axes[1].lines) == 2 and not np.isnan(figure.axes[1].lines[0].get_ydata()).any()


@pytest.mark.parametrize("forget", [False, True])
def test_stop_and_go_loses_nothing(runs, tmp_path, forget):
    config, dataset = read_config(runs[0]["full"]), runs[1]
    board = D.Dashboard(Trainer(config, tmp_path/"run", dataset))
    update, steps = D._Steps.update, len(board.trainer.sampler)
    for at in (1, 2*steps, 2*steps + 2):   # within an epoch, at its end, and again
        def stop_at(self):
            if self.trainer.step == at: self.halt = True
            update(self)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(D._Steps, "update", stop_at)
            board.go(); board.wait(60)
        assert not board.running and "Stopped and saved" in board.state and (tmp_path/"run"/"state.pt").is_file()
        if forget: board = D.Dashboard(tmp_path/"run", dataset)   # another notebook
    board.go(); board.wait(60)
    assert "Finished" in board.state and board.progress.value == 4
    pd.testing.assert_frame_equal(plain(board.history), plain(pd.read_csv(runs[0]["full"]/"history.csv")), rtol=1e-12)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/"run"/"history.csv").drop(columns="seconds"), plain(board.history), rtol=1e-12)
    weights = [load_run(folder, "cpu")[0].model.state_dict() for folder in (tmp_path/"run", runs[0]["full"])]
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights)))
    assert board.results is not None and board.results.value.to_numpy() == pytest.approx(pd.read_csv(runs[0]["full"]/"results.csv").value.to_numpy())
