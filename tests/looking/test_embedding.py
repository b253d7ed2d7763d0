"Images to features, files of features, and ONNX: what a reader of the chapter does not see."
import builtins, importlib.util, json, logging, warnings
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from torch import nn
import vdistill
from vdistill.looking import embedding as M
from vdistill.reid.checkpoints import save_state, save_weights
from vdistill.core import InputError
from vdistill.reid.data import load_dataset
from vdistill.reid.evaluation import extract_features
from vdistill.reid.runs import build_model, load_run, start_run
from vdistill.reid.training import configure

PEOPLE = {"data.identities": [6, 2, 3], "data.images_per_camera": 1}
SMALL = dict(width=8, features=24, z_features=16, hidden=(32,), grid=(4, 4), device="cpu")

def make_run(folder, method="full", size=(32, 24), headline="z shared", **settings):
    "A run that was never trained, with running statistics as if it had been."
    config = configure("synthetic", method, **SMALL | settings, **PEOPLE, **{"data.image_size": list(size)})
    model, rng = build_model(config, 6), torch.Generator().manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.running_mean.normal_(0, .1, generator=rng)
            layer.running_var.uniform_(.5, 2, generator=rng)
    start_run(folder, config)
    save_weights(folder, model)
    save_state(folder, dict(best=dict(feature=headline)))
    return folder

@pytest.fixture(scope="module")
def run(tmp_path_factory): return make_run(tmp_path_factory.mktemp("embedding")/"run")

@pytest.fixture(scope="module")
def people(): return load_dataset("synthetic", image_size=(32, 24), identities=(6, 2, 3), images_per_camera=1)

@pytest.fixture(scope="module")
def images(tmp_path_factory, people):
    "The test images as files, in a folder for each modality."
    folder = tmp_path_factory.mktemp("images")
    for row in people.indices("test"):
        where = folder/("visible", "infrared")[people.records.modality[row]]
        where.mkdir(exist_ok=True)
        Image.fromarray(people.images(np.array([row]))[0].permute(1, 2, 0).numpy()).save(where/f"{row:03d}.png")
    return folder

def rows_of(paths): return np.array([int(Path(p).stem) for p in paths])

def refuse(monkeypatch, *names):
    "As if these modules were not installed."
    real = importlib.import_module
    def fake(name, *args):
        if name.partition(".")[0] in names: raise ModuleNotFoundError(name, name=name)
        return real(name, *args)
    monkeypatch.setattr(importlib, "import_module", fake)

# which images

def test_find_images_walks_sorts_and_passes_over(tmp_path):
    for name in ("b/2.PNG", "b/10.jpg", "a.jpeg", "b/c/0.webp", "b/notes.txt", "b/.hidden.png", ".cache/x.png", "b/.git/y.png"):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).touch()
    names = lambda found: [p.relative_to(tmp_path).as_posix() for p in found]
    assert names(M.find_images(tmp_path)) == ["a.jpeg", "b/10.jpg", "b/2.PNG", "b/c/0.webp"]
    assert names(M.find_images([tmp_path/"b"/"2.PNG", tmp_path/"b", str(tmp_path/"a.jpeg")])) == ["b/2.PNG", "b/10.jpg", "b/c/0.webp", "a.jpeg"]

def test_find_images_names_all_faults_at_once(tmp_path):
    (tmp_path/"empty").mkdir()
    (tmp_path/"notes.txt").touch()
    (tmp_path/"x.txt").touch()
    with pytest.raises(InputError) as e: M.find_images([tmp_path/"empty", tmp_path/"notes.txt", tmp_path/"nowhere.png"])
    for word in ("3 unusable paths", "empty: a folder without an image", "notes.txt: does not end like an image", "nowhere.png: not there"): assert word in str(e.value)
    with pytest.raises(InputError, match="no image was named"): M.find_images([])

# features

def test_features_are_those_of_the_evaluation(run, images, people):
    embed, headline = load_run(run, "cpu")
    for code, modality in enumerate(("visible", "infrared")):
        found = M.embed_run(run, images/modality, modality, "all", "cpu", batch_size=5)
        theirs = extract_features(people, embed, rows_of(found.path), code)
        assert set(found.features) == set(theirs) == {"v shared", "z shared", "v specific+shared", "z specific+shared"}
        for name, x in theirs.items():
            assert found.features[name].dtype == np.float32
            np.testing.assert_allclose(found.features[name], x.numpy(), atol=1e-3, rtol=0) # batches of another size, other roundings
        assert set(found.modality) == {modality} and len(found) == len(theirs[headline]) == len(found.frame())

def test_the_headline_is_the_default_and_features_are_chosen_by_name(run, images):
    assert list(M.embed_run(run, images, "ir", device="cpu").features) == ["z shared"]
    assert list(M.embed_run(run, images, "ir", ["v shared", "z shared"], "cpu").features) == ["v shared", "z shared"]
    with pytest.raises(InputError, match="no feature 'w'.*v specific"): M.embed_run(run, images, "ir", "w", "cpu")

@pytest.mark.parametrize("word", [None, "", "night", "visible or infrared"])
def test_the_modality_is_never_guessed(run, images, word):
    with pytest.raises(InputError, match="visible or infrared"): M.embed_run(run, images, word, device="cpu")

def test_images_of_any_size_and_mode_are_resized_as_in_training(run, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (90, 50), dtype=np.uint8)).save(tmp_path/"grey.png")
    Image.fromarray(rng.integers(0, 256, (90, 50, 3), dtype=np.uint8)).convert("CMYK").save(tmp_path/"print.jpg")
    Image.fromarray(rng.integers(0, 2**16, (20, 61), dtype=np.uint16)).save(tmp_path/"deep.png")
    paths = M.find_images(tmp_path)
    (tmp_path/"list.csv").write_text("path,identity,modality,split\n" + "".join(f"{p},{i},{m},{s}\n" for i, (p, m, s) in enumerate(zip(paths, ("visible",)*3, ("train", "val", "test")))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = load_dataset(f"csv:{tmp_path/'list.csv'}", image_size=(32, 24)).images(range(3))
    embed, _ = load_run(run, "cpu")
    np.testing.assert_allclose(M.embed_images(embed, paths, "visible", "v shared")["v shared"], embed(pixels, 0)["v shared"], atol=1e-3)

def test_unreadable_images_are_all_named_at_once(run, images, tmp_path):
    good = sorted((images/"visible").iterdir())[0]
    for i in range(6): (tmp_path/f"{i}.png").write_bytes(good.read_bytes())
    for i in (0, 1): (tmp_path/f"{i}.png").write_bytes(b"") # a whole batch
    (tmp_path/"4.png").write_bytes(good.read_bytes()[:90])
    embed, _ = load_run(run, "cpu")
    with pytest.raises(InputError) as e: M.embed_images(embed, M.find_images(tmp_path), "visible", batch_size=2)
    for word in ("3 unusable images", "0.png: empty file", "1.png: empty file", "4.png: no image", "leave them out"): assert word in str(e.value)
    for options in (dict(paths=[]), dict(paths=[good], batch_size=0)):
        with pytest.raises(InputError, match="at least"): M.embed_images(embed, modality="visible", **options)

def test_runs_without_weights_are_named(run, images, tmp_path):
    (tmp_path/"config.yaml").write_text((run/"config.yaml").read_text())
    with pytest.raises(InputError, match="checksums.json is missing"): M.embed_run(tmp_path, images, "visible", device="cpu")
    with pytest.raises(InputError, match="is no run"): M.embed_run(images, images, "visible", device="cpu")

# files

@pytest.fixture(scope="module")
def found(run, images): return M.embed_run(run, images/"visible", "visible", ["z shared", "v specific+shared"], "cpu")

@pytest.mark.parametrize("ending", [".npz", ".parquet"])
def test_files_give_back_what_was_written(found, tmp_path, ending):
    if ending == ".parquet": pytest.importorskip("pyarrow", reason="parquet needs pyarrow: pip install vdistill[export]")
    M.write_embeddings(tmp_path/f"new/folder{ending}", found)
    again = M.read_embeddings(tmp_path/f"new/folder{ending}")
    assert again.about == found.about and again.path.tolist() == found.path.tolist() and again.modality.tolist() == found.modality.tolist()
    assert list(again.features) == list(found.features)
    for name, x in found.features.items():
        assert again.features[name].dtype == np.float32
        np.testing.assert_array_equal(again.features[name], x)
    assert [p.name for p in (tmp_path/"new").iterdir()] == [f"folder{ending}"]

def test_what_a_file_says_of_its_run(found, run):
    about = found.about
    assert about["dataset"] == "synthetic" and about["method"] == "full" and about["seed"] == 0 and about["headline"] == "z shared" and about["run"] == "run"
    assert about["image_size"] == [32, 24] and about["normalised"] is False and about["precision"] == "float32" and vdistill.__version__ in about["versions"]
    assert about["weights"] == json.loads((run/"checksums.json").read_text())["sha256"]["model.safetensors"]
    assert json.loads(json.dumps(about)) == about

def test_no_folder_of_the_training_data_travels(run):
    embed, headline = load_run(run, "cpu")
    embed.config.dataset = "pairs:/people/private/street"
    assert M.describe_run(run, embed, headline)["dataset"] == "pairs:street"

def test_parquet_is_read_by_others(found, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet", reason="parquet needs pyarrow: pip install vdistill[export]")
    M.write_embeddings(tmp_path/"x.parquet", found)
    table = pq.read_table(tmp_path/"x.parquet")
    assert table.column_names == ["path", "modality", "z shared", "v specific+shared"] and "float" in str(table.schema.field("z shared").type)
    np.testing.assert_array_equal(np.stack(table.to_pandas()["z shared"]), found.features["z shared"])

def test_other_endings_and_a_missing_pyarrow(found, tmp_path, monkeypatch):
    for name in ("x.csv", "x", "x.npy"):
        with pytest.raises(InputError, match="npz or .parquet"): M.write_embeddings(tmp_path/name, found)
    refuse(monkeypatch, "pyarrow")
    for act in (lambda: M.write_embeddings(tmp_path/"x.parquet", found), lambda: M.read_embeddings(tmp_path/"x.parquet")):
        with pytest.raises(InputError, match=r"pip install vdistill\[export\], or write .npz"): act()
    M.write_embeddings(tmp_path/"x.npz", found)
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]

def test_files_of_others_are_refused_and_nothing_in_them_runs(found, tmp_path):
    class Trap:
        def __reduce__(self): return (builtins.exec, (f"open({str(tmp_path/'sprung')!r}, 'w')",))
    M.write_embeddings(tmp_path/"whole.npz", found)
    (tmp_path/"cut.npz").write_bytes((tmp_path/"whole.npz").read_bytes()[:500])
    (tmp_path/"text.npz").write_text("hello")
    np.savez(tmp_path/"foreign.npz", x=np.zeros(3))
    np.savez(tmp_path/"trap.npz", path=np.array([Trap()], dtype=object), modality=np.zeros(1), metadata=np.array("{}"))
    for name in ("cut", "text", "foreign", "trap"):
        with pytest.raises(InputError, match=f"{name}.npz holds no embeddings"): M.read_embeddings(tmp_path/f"{name}.npz")
    assert not (tmp_path/"sprung").exists()
    with pytest.raises(InputError, match="no file"): M.read_embeddings(tmp_path/"nowhere.npz")
    pq = pytest.importorskip("pyarrow.parquet", reason="parquet needs pyarrow: pip install vdistill[export]")
    (tmp_path/"text.parquet").write_text("hello")
    pq.write_table(M._extra("pyarrow").table(dict(x=[1])), tmp_path/"foreign.parquet")
    for name in ("text", "foreign"):
        with pytest.raises(InputError, match=f"{name}.parquet holds no embeddings"): M.read_embeddings(tmp_path/f"{name}.parquet")

# the nearest

def made(x, weights="one", **features):
    return M.Embeddings(np.array([f"{i}.png" for i in range(len(x))]), np.full(len(x), "visible"), dict(f=np.float32(x)) | features, dict(weights=weights))

def test_nearest_ranks_by_cosine():
    table = M.nearest(made([[1, 0], [0, 5]]), made([[0, 1], [3, .1], [-1, 0], [1, 1]]), 3)
    assert table.columns.tolist() == ["query", "rank", "path", "distance"]
    assert table.path.tolist() == ["1.png", "3.png", "0.png", "0.png", "3.png", "1.png"] and table["rank"].tolist() == [1, 2, 3]*2
    np.testing.assert_allclose(table.distance[[1, 2]], [1 - .5**.5, 1], atol=1e-6)
    assert len(M.nearest(made([[1, 0]]), made([[0, 1], [1, 0]]), 9)) == 2

def test_nearest_refuses_two_networks_and_unknown_features():
    with pytest.raises(InputError, match="two networks"): M.nearest(made([[1, 0]]), made([[1, 0]], "two"))
    with pytest.raises(InputError, match="gallery have no feature 'g'; they have f"): M.nearest(made([[1, 0]], g=np.ones((1, 2), np.float32)), made([[1, 0]]), feature="g")

# ONNX

onnx_reason = "needs onnx, onnxscript and onnxruntime: pip install vdistill[export]"
def runtime():
    for name in ("onnx", "onnxscript"): pytest.importorskip(name, reason=onnx_reason)
    return pytest.importorskip("onnxruntime", reason=onnx_reason)

CASES = [("full", (64, 32), "z specific+shared", "visible", {}), ("vib", (44, 36), "z shared", "infrared", {}), ("baseline", (32, 24), "v specific+shared", "infrared", dict(front="pixels")),
         ("full", (32, 24), "z shared", "visible", dict(network="two_stream", pooling="gem")), ("released", (32, 24), "v specific+shared", "infrared", dict(views="grey", front="pixels", z_hidden=(8,)))]

@pytest.mark.parametrize("method, size, feature, modality, settings", CASES, ids=["bottleneck", "stochastic, pooled unevenly", "baseline, pixels", "two streams, GeM", "released, grey copies"])
def test_onnx_matches_the_network(tmp_path, people, method, size, feature, modality, settings):
    "Batches of 1, 3 and 64, noise and people; the network is asked without any code of the chapter."
    ort = runtime()
    run = make_run(tmp_path/"run", method, size, feature, **settings)
    agreement = M.export_onnx(run, tmp_path/"net.onnx", modality)
    assert agreement.difference <= 1e-4 and agreement.random == 12 and agreement.test == (12 if modality == "visible" else 6)
    session, (embed, _) = ort.InferenceSession(str(tmp_path/"net.onnx"), providers=["CPUExecutionProvider"]), load_run(run, "cpu")
    assert [i.name for i in session.get_inputs()] == ["images"] and [o.name for o in session.get_outputs()] == ["features"]
    rng = torch.Generator().manual_seed(0)
    drawn = load_dataset("synthetic", image_size=size, identities=(2, 2, 2), images_per_camera=1)
    code = ("visible", "infrared").index(modality)
    flat = torch.full((3, 3, *size), 90, dtype=torch.uint8)
    for images in [*(torch.randint(0, 256, (n, 3, *size), dtype=torch.uint8, generator=rng) for n in (1, 3, 64)), drawn.images(drawn.records.index[drawn.records.modality == code][:8]), flat]:
        ours, theirs = embed(images, code)[feature].numpy(), session.run(None, dict(images=images.numpy()))[0]
        assert theirs.shape == ours.shape and theirs.dtype == np.float32
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4*np.abs(ours).max())

def test_onnx_matches_a_resnet50(tmp_path, people):
    runtime()
    config = configure("synthetic", "full", **SMALL | dict(backbone="resnet50"), **PEOPLE)
    graph = M.FeatureGraph(build_model(config, 6), 0, "v shared")
    M.write_graph(graph, (32, 24), tmp_path/"net.onnx", {})
    rng = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 256, (n, 3, 32, 24), dtype=torch.uint8, generator=rng) for n in (1, 3, 64)]
    assert M.compare_onnx(tmp_path/"net.onnx", graph, [*batches, people.images(range(8))])[0] <= 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"] and (tmp_path/"net.onnx").stat().st_size > 90e6 # weights are inside

def test_an_onnx_file_says_what_it_is_and_nothing_of_this_machine(run, tmp_path, capfd):
    runtime()
    import onnx
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        M.export_onnx(run, tmp_path/"net.onnx", "thermal", "v shared")
    assert capfd.readouterr() == ("", "") and logging.root.manager.disable == 0
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    model = onnx.load(tmp_path/"net.onnx")
    onnx.checker.check_model(model, full_check=True)
    said = {p.key: p.value for p in model.metadata_props}
    assert said["modality"] == "infrared" and said["feature"] == "v shared" and said["image_size"] == "[32, 24]" and said["method"] == "full" and said["dataset"] == "synthetic" and vdistill.__version__ in said["versions"]
    data = (tmp_path/"net.onnx").read_bytes()
    for trace in (str(Path(vdistill.__file__).parent), str(tmp_path), "File \""): assert trace.encode() not in data
    names = " ".join(i.name for i in model.graph.initializer)
    assert "shared" in names and not any(word in names for word in ("visible", "infrared", "classifier", "bottleneck"))
    assert not {n.op_type for n in model.graph.node} & {"SequenceAt", "SplitToSequence", "SequenceConstruct", "RandomNormal", "Dropout"}

@pytest.mark.parametrize("precision, written", [("auto", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")])
def test_the_record_names_the_precision(tmp_path, precision, written):
    run = make_run(tmp_path/"run", precision=precision)
    assert M.describe_run(run, *load_run(run, "cpu"))["precision"] == written

def test_export_is_exact_whatever_is_switched_on(tmp_path):
    "A run in bfloat16, exported within autocast, is exported and checked in float32."
    runtime()
    run = make_run(tmp_path/"run", precision="bfloat16")
    with torch.autocast("cpu", torch.bfloat16): agreement = M.export_onnx(run, tmp_path/"net.onnx", "visible")
    assert agreement.difference < 1e-4

def test_versions_that_do_not_fit_are_named(run, tmp_path, monkeypatch):
    runtime()
    def broken(*args, **options): raise AttributeError("a name that has gone")
    monkeypatch.setattr(torch.onnx, "export", broken)
    with pytest.raises(InputError, match="no ONNX from torch .*onnxscript.*onnx-ir.*AttributeError.*as old as torch"):
        M.export_onnx(run, tmp_path/"net.onnx", "visible")
    assert not list(tmp_path.iterdir())

def test_a_file_that_differs_is_not_kept(run, tmp_path, monkeypatch):
    runtime()
    write = M.write_graph
    def spoiled(graph, *args):
        model = M.FeatureGraph(load_run(run, "cpu")[0].model, graph.modality, graph.feature)
        model.model.front.window = 15
        write(model, *args)
    monkeypatch.setattr(M, "write_graph", spoiled)
    (tmp_path/"net.onnx").write_text("the file of yesterday")
    with pytest.raises(InputError, match="not kept.*differ by"): M.export_onnx(run, tmp_path/"net.onnx", "visible")
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"] and (tmp_path/"net.onnx").read_text() == "the file of yesterday"

def test_the_made_up_images_alone_see_a_lost_constant(run, tmp_path, monkeypatch):
    "A data set that is not there any more, and an exporter that takes 1e-8 for nothing."
    runtime()
    config = (run/"config.yaml").read_text()
    copy = tmp_path/"run"
    copy.mkdir()
    for p in run.iterdir(): (copy/p.name).write_bytes(p.read_bytes())
    (copy/"config.yaml").write_text(config.replace("dataset: synthetic", "dataset: pairs:gone"))
    assert M._test_images(load_run(copy, "cpu")[0].config, 0) == []
    export = torch.onnx.export
    def usual(graph, *args, **options):
        class Lossy(nn.Module):
            def forward(self, x):
                grey = (x*graph.model.front.luma).sum(1, keepdim=True)
                gx, gy = nn.functional.conv2d(nn.functional.pad(grey, (1, 1, 1, 1), mode="replicate"), graph.model.front.kernels).split(1, dim=1)
                strength = (gx*gx + gy*gy).sqrt()
                return torch.cat([strength, (gx*gx - gy*gy)/strength, 2*gx*gy/strength], 1)/(nn.functional.avg_pool2d(strength, 17, 1, 8, count_include_pad=False) + .01)
        front, graph.model.front = graph.model.front, Lossy()
        graph.model.front.luma, graph.model.front.kernels = front.luma, front.kernels
        try: export(graph, *args, **options)
        finally: graph.model.front = front
    monkeypatch.setattr(torch.onnx, "export", usual)
    with pytest.raises(InputError, match="differ by nan"): M.export_onnx(copy, tmp_path/"lossy.onnx", "visible")
    assert not (tmp_path/"lossy.onnx").exists()

def test_export_of_what_cannot_be(run, tmp_path, monkeypatch):
    for args, word in (((tmp_path/"x.pt", "visible"), "ends in .onnx"), ((tmp_path/"x.onnx", None), "visible or infrared")):
        with pytest.raises(InputError, match=word): M.export_onnx(run, *args)
    if all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        with pytest.raises(InputError, match="no feature 'w'"): M.export_onnx(run, tmp_path/"x.onnx", "visible", "w")
    for name in ("onnx", "onnxscript", "onnxruntime"):
        with monkeypatch.context() as m:
            refuse(m, name)
            with pytest.raises(InputError, match=rf"pip install vdistill\[export\]$"): M.export_onnx(run, tmp_path/"x.onnx", "visible")
    assert not list(tmp_path.iterdir())
