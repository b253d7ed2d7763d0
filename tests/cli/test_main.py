"The commands as a shell calls them."
import contextlib, dataclasses, io, os, shlex, shutil, subprocess, sys, warnings
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest
from PIL import Image
from vdistill.cli.main import main
from vdistill.cli.measures import read_columns
from vdistill.core import InputError

SMALL = ["epochs=2", "width=8", "features=32", "z_features=32", "hidden=[32]", "validate_every=1", "identities_per_batch=8"]
PEOPLE = ["data.identities=[24, 8, 12]", "data.images_per_camera=2"]

def call(folder, *args):
    "The console script's function in this process, from a folder; a shell would see the same."
    out, err, code, before, argv = io.StringIO(), io.StringIO(), 0, os.getcwd(), sys.argv
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        os.chdir(folder)
        sys.argv = ["vdistill", *map(str, args)]
        try: main()
        except SystemExit as e: code = e.code or 0
        finally:
            os.chdir(before)
            sys.argv = argv
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())

def sets(*settings): return [x for s in settings for x in ("--set", s)]

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    return folder, call(folder, "train", "synthetic", "--out", "a run", *sets(*SMALL, *PEOPLE))

@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    "Generated aligned pairs: smoothed noise, and its negative."
    folder, rng = tmp_path_factory.mktemp("scenes")/"pairs", np.random.default_rng(0)
    for i in range(12):
        x = Image.fromarray(rng.integers(0, 256, (22, 32), dtype=np.uint8)).resize((320, 220), Image.Resampling.BICUBIC)
        for name, image in (("visible", x.convert("RGB")), ("infrared", x.point(lambda v: 255 - v))):
            (folder/name).mkdir(parents=True, exist_ok=True)
            image.save(folder/name/f"{i:03d}.png")
    return folder

def test_train_makes_a_whole_run(trained):
    folder, done = trained
    assert done.returncode == 0, done.stderr
    names = {p.name for p in (folder/"a run").iterdir()}
    assert names >= {"config.yaml", "history.csv", "model.safetensors", "state.pt", "checksums.json", "results.csv", "kl_curves.png", "embedding.png", "ranked_infrared_to_visible.png", "ranked_visible_to_infrared.png"}
    assert not [n for n in names if n.startswith(".")]
    results = pd.read_csv(folder/"a run"/"results.csv")
    assert set(results.method) >= {"chance", "pixels", "HOG", "full", "ceiling"} and results.value.between(0, 100).all()
    assert set(results.direction) == {"infrared→visible", "visible→infrared"} and set(results.metric) == {"rank-1", "rank-5", "rank-10", "mAP", "mINP"}
    for word in ("rank-1", "chance", "ceiling", "z specific+shared", "kl_curves.png", "chosen on validation identities"): assert word in done.stdout

def test_evaluate_and_show(trained):
    folder, _ = trained
    again = call(folder, "evaluate", "a run")
    assert again.returncode == 0, again.stderr
    before, after = (pd.read_csv(folder/"a run"/n) for n in ("results.csv", "evaluate-synthetic-test.csv"))
    keys = ["method", "feature", "direction", "metric"]
    np.testing.assert_allclose(before.set_index(keys).value.sort_index(), after.set_index(keys).value.sort_index(), atol=1e-9)
    (folder/"a run"/"embedding.png").unlink()
    assert call(folder, "show", "a run").returncode == 0 and (folder/"a run"/"embedding.png").is_file()

def test_evaluate_what_was_learned(trained, scenes):
    folder, _ = trained
    assert call(folder, "evaluate", "a run", "--split", "train").returncode == 0
    train, test = (pd.read_csv(folder/"a run"/f"evaluate-synthetic-{s}.csv") for s in ("train", "test"))
    assert set(train.split) == {"train"} and not train.value.equals(test.value)
    for wrong in (["--split", "training"], [f"pairs:{scenes}", "--split", "train"]):
        done = call(folder, "evaluate", "a run", *wrong)
        assert done.returncode == 2 and done.stderr.strip().count("\n") == 0 and f"--split {wrong[-1]}" in done.stderr

def test_evaluate_on_another_set_takes_all_of_it(trained, scenes):
    folder, _ = trained
    done = call(folder, "evaluate", "a run", f"pairs:{scenes}")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(folder/"a run"/"evaluate-pairs-all.csv")
    assert set(table.split) == {"all"} and "all identities" in table.protocol.iloc[0]

def test_train_on_pairs(trained, scenes):
    folder, _ = trained
    done = call(folder, "train", f"pairs:{scenes}", "--recipe", "scratch", *sets(*SMALL, "identities_per_batch=4"))
    assert done.returncode == 0, done.stderr
    assert (folder/"runs"/"pairs-full-0"/"results.csv").is_file()
    assert call(folder, "train", f"pairs:{scenes}", "--recipe", "scratch", "--method", "baseline", *sets(*SMALL, "identities_per_batch=4")).returncode == 0

def test_resume(trained):
    folder, _ = trained
    shutil.copytree(folder/"a run", folder/"cut")
    (folder/"cut"/"results.csv").unlink()
    unfinished = call(folder, "show", "cut")
    assert unfinished.returncode == 2 and "--resume" in unfinished.stderr
    done = call(folder, "train", "--resume", "cut")
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(*(pd.read_csv(folder/n/"results.csv").drop(columns=["seconds", "commit"]) for n in ("a run", "cut")))

def test_resume_changes_what_it_may(trained):
    "Settings that leave what is learned as it was are written down; the rest of the configuration stays."
    from vdistill.reid.runs import read_config
    folder, _ = trained
    shutil.copytree(folder/"a run", folder/"my cut")
    before = read_config(folder/"my cut")
    done = call(folder, "train", "--resume", "my cut", *sets("skip_nonfinite=3", "checkpointing=true", "precision=bfloat16", "device=cpu", "compile=never"))
    assert done.returncode == 0, done.stderr
    assert read_config(folder/"my cut") == dataclasses.replace(before, skip_nonfinite=3, checkpointing=True, precision="bfloat16", device="cpu", compile="never")
    kept = (folder/"my cut"/"config.yaml").read_text()
    for args, word in ((sets("learning_rate=0.1"), "learning_rate"), (sets("skip_nonfinite=4", "data.views=2"), "data.views"), (["--seed", "0"], "--seed 0"), (["--method", "full"], "--method full"),
                       (["--recipe", "paper"], "--recipe paper"), (["--out", "b"], "--out b"), (sets("skip_nonfinite=-1"), "skip_nonfinite=-1"), (sets("device=cuda:77"), "cuda:77"), (sets("precision=float16"), "float16")):
        done = call(folder, "train", "--resume", "my cut", *args)
        assert done.returncode == 2 and word in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert (folder/"my cut"/"config.yaml").read_text() == kept

def test_commands_that_are_printed_can_be_pasted(trained, capsys):
    from vdistill.cli.runs import _interrupted
    folder, _ = trained
    shutil.copytree(folder/"a run", folder/"my runs"/"k")
    (folder/"my runs"/"k"/"results.csv").unlink()
    assert f"--resume {shlex.quote(str(Path('my runs', 'k')))}" in call(folder, "show", Path("my runs", "k")).stderr
    assert _interrupted(SimpleNamespace(run_dir=Path("my runs", "k"), epoch=1), 15) == 143
    assert shlex.split(capsys.readouterr().err.strip())[-1] == str(Path("my runs", "k"))

def test_a_dataset_is_its_own_however_it_is_written(tmp_path, scenes, monkeypatch):
    "Its training people are not counted as those of another."
    from vdistill.cli.base import open_for_evaluation
    from vdistill.reid.training import configure
    monkeypatch.setenv("HOME", str(scenes.parent))
    monkeypatch.setenv("USERPROFILE", str(scenes.parent))
    monkeypatch.chdir(scenes.parent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for own, given in (("~/pairs", scenes), (scenes, "~/pairs"), ("~/pairs", "pairs"), (scenes, scenes/".."/"pairs")):
            config = configure(f"pairs:{own}", **{"data.image_size": [16, 16]})
            assert open_for_evaluation(config, f"pairs:{given}")[2] == "test"

@pytest.mark.parametrize("args, word", [
    (["train"], "--resume"), (["train", "pairs:nowhere"], "nowhere"), (["train", "synth"], "synthetic"), (["train", "csv:none.csv"], "none.csv"),
    (["train", "synthetic", "--method", "fool"], "baseline"), (["train", "synthetic", "--set", "epoch=3"], "epochs"), (["train", "synthetic", "--set", "epochs"], "KEY=VALUE"),
    (["train", "synthetic", "--set", "seed=3"], "--help"), (["demo", "--set", "method=full"], "--help"),
    (["train", "synthetic", "--set", "device=cuda:77"], "cuda:77"), (["train", "synthetic", "--set", "epochs=0"], "epochs"), (["train", "--resume", "nowhere"], "nowhere"),
    (["train", "synthetic", "--out", "a run"], "a run"), (["evaluate", "nowhere"], "nowhere"), (["evaluate", "a run", "pairs:nowhere"], "nowhere"),
    (["show", "nowhere"], "nowhere"), (["ablate", "none.yaml"], "none.yaml")])
def test_bad_input_is_one_line_and_leaves_nothing(trained, args, word):
    folder, _ = trained
    before = sorted(folder.rglob("*"))
    done = call(folder, *args)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: ") and word in lines[0], done.stderr
    assert sorted(folder.rglob("*")) == before

def test_corrupt_images_are_all_named(tmp_path, scenes):
    broken = tmp_path/"broken"
    shutil.copytree(scenes, broken)
    (broken/"visible"/"003.png").write_bytes(b"")
    (broken/"infrared"/"005.png").write_bytes(b"no image")
    done = call(tmp_path, "train", f"pairs:{broken}")
    assert done.returncode == 2 and "003.png" in done.stderr and "005.png" in done.stderr and not (tmp_path/"runs").exists()

@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photographs")/"some images", np.random.default_rng(0)
    folder.mkdir()
    for i in range(3): Image.fromarray(rng.integers(0, 256, (80, 50, 3), dtype=np.uint8)).save(folder/f"{i}.png")
    return folder

def test_embed_writes_what_the_library_computes(trained, photographs):
    from vdistill.looking.embedding import embed_run, read_embeddings
    folder, _ = trained
    done = call(folder, "embed", "a run", photographs, photographs/"1.png", "--modality", "infrared", "--out", "new/features.npz", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    found, ours = read_embeddings(folder/"new"/"features.npz"), embed_run(folder/"a run", photographs, "infrared", device="cpu")
    assert found.path.tolist() == [str(photographs/f"{i}.png") for i in range(3)] and set(found.modality) == {"infrared"}
    assert list(found.features) == [found.about["headline"]]
    np.testing.assert_array_equal(found.features[found.about["headline"]], ours.features[found.about["headline"]])
    assert "3 infrared images" in done.stdout and "new/features.npz" in done.stdout.replace(os.sep, "/")
    every = call(folder, "embed", "a run", photographs/"0.png", "--modality", "visible", "--out", "all.npz", "--feature", "all")
    assert every.returncode == 0 and set(read_embeddings(folder/"all.npz").features) == {"v shared", "z shared", "v specific+shared", "z specific+shared"}

def test_embed_into_parquet(trained, photographs):
    pq = pytest.importorskip("pyarrow.parquet", reason="parquet needs pyarrow: pip install vdistill[export]")
    folder, _ = trained
    done = call(folder, "embed", "a run", photographs, "--modality", "rgb", "--out", "features.parquet", "--feature", "z shared")
    assert done.returncode == 0, done.stderr
    assert pq.read_table(folder/"features.parquet").column_names == ["path", "modality", "z shared"]

def test_export_is_checked(trained):
    for name in ("onnx", "onnxscript"): pytest.importorskip(name, reason="needs onnx: pip install vdistill[export]")
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install vdistill[export]")
    folder, _ = trained
    done = call(folder, "export", "a run", "net.onnx", "--modality", "visible")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "largest difference from the network" in done.stdout and "32 test images" in done.stdout and "net.onnx" in done.stdout
    session = ort.InferenceSession(str(folder/"net.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, dict(images=np.zeros((2, 3, 64, 32), np.uint8)))[0].shape[0] == 2 and session.get_modelmeta().custom_metadata_map["modality"] == "visible"

@pytest.mark.parametrize("args, word", [
    (["embed", "a run", "PHOTOS", "--out", "x.npz"], "--modality"), (["embed", "a run", "PHOTOS", "--modality", "night", "--out", "x.npz"], "night"),
    (["embed", "a run", "PHOTOS", "--modality", "visible", "--out", "x.csv"], "x.csv"), (["embed", "a run", "nowhere.png", "--modality", "visible", "--out", "x.npz"], "nowhere.png"),
    (["embed", "a run", "PHOTOS", "--modality", "visible", "--out", "x.npz", "--feature", "w"], "z shared"), (["embed", "nowhere", "PHOTOS", "--modality", "visible", "--out", "x.npz"], "nowhere"),
    (["export", "a run", "x.pt", "--modality", "visible"], "x.pt"), (["export", "a run", "x.onnx", "--modality", "night"], "night"), (["export", "nowhere", "x.onnx", "--modality", "visible"], "nowhere")])
def test_bad_input_of_embed_and_export_leaves_nothing(trained, photographs, args, word):
    if args[0] == "export": pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install vdistill[export]")
    folder, _ = trained
    before = sorted(folder.rglob("*"))
    done = call(folder, *(photographs if a == "PHOTOS" else a for a in args))
    assert done.returncode == 2 and word in done.stderr and "Traceback" not in done.stderr
    if word != "--modality": assert done.stderr.count("error: ") == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr # a missing option is typer's own message
    assert sorted(folder.rglob("*")) == before

def test_help_for_each():
    for command in ("demo", "train", "evaluate", "show", "doctor", "embed", "export", "import", "audit", "ablate", "mi", "staircase", "digits", "views", "cifar", "bench", "lab"):
        done = call(".", command, "--help")
        assert done.returncode == 0 and "Usage" in done.stdout

def test_ablate_skips_what_is_done(tmp_path):
    (tmp_path/"grid.yaml").write_text("datasets: [synthetic]\nmethods: [baseline, full]\nseeds: [0]\nsettings: {epochs: 1, width: 8, features: 32, z_features: 32, hidden: [32], identities_per_batch: 8, data: {identities: [24, 8, 12], images_per_camera: 2}}\n")
    assert call(tmp_path, "ablate", "grid.yaml", "--shard", "1/2").returncode == 0
    done = call(tmp_path, "ablate", "grid.yaml", "--collect", "some.csv")
    assert "1 of 2" in done.stdout and "synthetic-full-0" in done.stdout
    stamp = (tmp_path/"runs/ablate/synthetic-baseline-0/results.csv").stat().st_mtime_ns
    assert call(tmp_path, "ablate", "grid.yaml").returncode == 0
    assert (tmp_path/"runs/ablate/synthetic-baseline-0/results.csv").stat().st_mtime_ns == stamp
    done = call(tmp_path, "ablate", "grid.yaml", "--collect", "all.csv")
    assert "2 of 2" in done.stdout and "minus baseline" in done.stdout
    assert {"all.csv", "all-history.csv", "all.png"} <= {p.name for p in tmp_path.iterdir()}
    assert set(pd.read_csv(tmp_path/"all-history.csv").method) == {"baseline", "full"}
    assert "nobody" in call(tmp_path, "ablate", "grid.yaml", "--collect", "b.csv", "--against", "nobody").stderr and not (tmp_path/"b.csv").exists()

def test_a_grid_that_chose_nothing_is_collected(tmp_path):
    "hold_out=false: no validation, so headlines are compared, and no table says that validation chose them."
    (tmp_path/"grid.yaml").write_text("datasets: [synthetic]\nmethods: [baseline, full]\nseeds: [0]\nsettings: {hold_out: false, epochs: 1, width: 8, features: 32, z_features: 32, hidden: [32], identities_per_batch: 8, data: {identities: [24, 8, 12], images_per_camera: 2}}\n")
    assert call(tmp_path, "ablate", "grid.yaml").returncode == 0
    done = call(tmp_path, "ablate", "grid.yaml", "--collect", "all.csv")
    assert done.returncode == 0 and "headline" in done.stdout and "2 of 2" in done.stdout, done.stderr
    assert {"all.csv", "all-history.csv", "all.png"} <= {p.name for p in tmp_path.iterdir()}
    run = tmp_path/"runs/ablate/synthetic-full-0"
    for table in (call(tmp_path, "show", run), call(tmp_path, "evaluate", run)): assert "* headline feature" in table.stdout and "chosen on" not in table.stdout
    refused = call(tmp_path, "evaluate", run, "--split", "val")
    assert refused.returncode == 2 and "hold_out=false" in refused.stderr

def test_from_a_shell(tmp_path):
    "The installed script and the module; exit code and one line on standard error."
    for command in ([str(Path(sys.executable).parent/"vdistill")], [sys.executable, "-m", "vdistill"]):
        done = subprocess.run([*command, "train", "pairs:nowhere"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_columns_as_spreadsheets_write_them(tmp_path, separator, encoding):
    rows = [["größe", "b", "word"], *([f"{k}.5", f"{k}", f"w{k}"] for k in range(9))]
    (tmp_path/"t.csv").write_bytes("\r\n".join(separator.join(row) for row in rows).encode(encoding))
    x, y = read_columns(tmp_path/"t.csv", "größe", "b, word")
    assert x["größe"].tolist() == [k + .5 for k in range(9)] and y.b.tolist() == list(range(9)) and not pd.api.types.is_numeric_dtype(y.word)
    if separator != ",":
        (tmp_path/"t.csv").write_bytes("\r\n".join(separator.join(row).replace(".", ",") for row in rows).encode(encoding))
        pd.testing.assert_frame_equal(read_columns(tmp_path/"t.csv", "größe", "b")[0], x)

def test_columns_of_rows_that_are_longer_than_the_header(tmp_path):
    "Taken for an index, their first cell would move every column by one."
    (tmp_path/"t.csv").write_text("a,b\n1,2,3\n4,5,6\n")
    with pytest.raises(InputError, match="line 2 has 3 of 2 cells"): read_columns(tmp_path/"t.csv", "a", "b")
    (tmp_path/"t.csv").write_bytes("a,é\n1,2\n".encode("cp1252"))
    with pytest.raises(InputError, match="line 1 has the byte 0xE9.*cp1252"): read_columns(tmp_path/"t.csv", "a", "a")


@pytest.mark.parametrize("environment", [dict(MPLBACKEND="module://backend_of_another_environment"), dict(MPLBACKEND="no-back-end")], ids=lambda e: "=".join(*e.items()))
def test_show_where_the_environment_names_what_is_not_there(trained, environment, without_umap):
    "A kernel's back end: pictures and table are there. (Encodings: test_output.)"
    folder, _ = trained
    done = subprocess.run([sys.executable, "-m", "vdistill", "show", "a run"], cwd=folder, env=dict(os.environ, PYTHONPATH=without_umap, **environment), capture_output=True, text=True, errors="replace")
    assert done.returncode == 0 and "headline feature" in done.stdout and "pictures: " in done.stdout and "Traceback" not in done.stderr, done.stderr[-2000:]

@pytest.mark.parametrize("broken", ["report.write_pictures", "report.scores_table", "comparison.reference_scores"])
def test_what_comes_after_a_training_cannot_fail_it(tmp_path, monkeypatch, broken):
    import vdistill.looking.comparison, vdistill.looking.report
    def fail(*args, **options): raise RuntimeError("no ink")
    monkeypatch.setattr(f"vdistill.looking.{broken}", fail)
    done = call(tmp_path, "train", "synthetic", "--out", "run", *sets(*SMALL, *PEOPLE))
    assert done.returncode == 0 and "no ink" in done.stderr and "vdistill show run" in done.stderr, done.stderr
    assert {"full"} <= set(pd.read_csv(tmp_path/"run"/"results.csv").method)
    monkeypatch.undo()
    again = call(tmp_path, "show", "run")
    assert again.returncode == 0 and "headline feature" in again.stdout and (tmp_path/"run"/"embedding.png").is_file()

def test_hog_of_no_use_is_said(tmp_path, monkeypatch):
    (tmp_path/"skimage").mkdir()
    (tmp_path/"skimage"/"__init__.py").write_text("raise ValueError('numpy.dtype size changed, may indicate binary incompatibility')")
    for known in [m for m in sys.modules if m.partition(".")[0] == "skimage"]: monkeypatch.delitem(sys.modules, known)
    monkeypatch.syspath_prepend(tmp_path)
    done = call(tmp_path, "train", "synthetic", "--out", "run", *sets(*SMALL, *PEOPLE))
    assert done.returncode == 0 and "HOG was not measured: scikit-image is installed, but cannot be used here (ValueError: numpy.dtype size changed" in done.stdout, done.stderr
