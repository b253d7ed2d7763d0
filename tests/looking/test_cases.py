"Margins, failures, cameras and attention maps: against loops in float64, closed forms and the published protocols."
import copy
import warnings
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from PIL import Image
from torch import nn

from vdistill.looking import cases as C
from vdistill.looking import pictures as P
from vdistill.looking import plots, report
from vdistill.reid.fakes import fake_llcm, fake_regdb, fake_sysu
from vdistill.core import InputError
from vdistill.reid.data import load_dataset
from vdistill.reid.records import DataWarning
from vdistill.reid.evaluation import official_scores
from vdistill.reid.models import ReIDNet, TwoStreamNet
from vdistill.reid.protocols import loop_scores
from vdistill.reid.retrieval import retrieval_scores
from vdistill.reid.training import Trainer, configure

fuzz = settings(deadline=None, derandomize=True, max_examples=80)
SMALL = dict(backbone="conv", weights=None, front="edges", epochs=1, identities_per_batch=2, images_per_identity=1, width=8, features=16, z_features=16, hidden=(16,), device="cpu")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@st.composite
def searches(draw):
    "Distances (few values, so that many are equal), identities of both sides, excluded pairs."
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    q, g, people, values = draw(st.integers(1, 8)), draw(st.integers(1, 12)), draw(st.integers(1, 5)), draw(st.sampled_from([2, 5, 10**6]))
    distances = (rng.integers(0, values, (q, g))/values).astype(draw(st.sampled_from([np.float32, np.float64])))
    exclude = rng.random((q, g)) < draw(st.sampled_from([0., .3, .9]))
    return distances, rng.integers(0, people, q), rng.integers(0, people, g), exclude if draw(st.booleans()) else None


def slow_margin(row, identity, gallery_ids, excluded):
    "One query in plain Python: outcome, first rank, average precision, margin, position of match and of other."
    pairs = [(float(d), k) for k, d in enumerate(row) if not excluded[k]]
    own, others = ([(d, k) for d, k in pairs if (gallery_ids[k] == identity) == same] for same in (True, False))
    match, other = (min(side) if side else (np.nan, -1) for side in (own, others))
    rank = 1 + sum(d <= match[0] for d, _ in others) if own else 0
    steps = [(sum(e <= d for e, _ in own), sum(e <= d for e, _ in pairs)) for d, _ in own]
    precision = sum(c/n for c, n in steps)/len(own) if own else np.nan
    return "no match" if not own else "found" if rank == 1 else "missed", rank, precision, other[0] - match[0], match[1], other[1]


@fuzz
@given(searches())
def test_margins_are_those_of_a_loop(search):
    d, q, g, exclude = search
    table = C.margins(d, q, g, exclude)
    assert list(table["query"]) == list(range(len(q))) and (table.identity == q).all()   # nobody is dropped
    for k, row in enumerate(table.itertuples()):
        outcome, rank, precision, margin, match, other = slow_margin(d[k], q[k], g, np.zeros(len(g), bool) if exclude is None else exclude[k])
        assert (row.outcome, row.first_rank, row.match, row.other) == (outcome, rank, match, other)
        np.testing.assert_allclose([row.average_precision, row.margin], [precision, margin], rtol=0, atol=1e-12)
        np.testing.assert_equal([row.match_distance, row.other_distance], [d[k][match] if match >= 0 else np.nan, d[k][other] if other >= 0 else np.nan])
        assert np.isnan(row.other_identity) if other < 0 else row.other_identity == g[other]
    if (table.outcome != "no match").any():
        scores, valid = retrieval_scores(d, q, g, exclude=exclude), table[table.outcome != "no match"]
        assert scores.valid_queries == len(valid) and np.isclose(scores.rank(1), (valid.outcome == "found").mean())
    np.testing.assert_array_equal(valid_margin := table.margin[table.outcome == "found"].dropna() > 0, np.ones(len(valid_margin), bool))


@fuzz
@given(searches(), st.integers(1, 5))
def test_the_worst_do_not_depend_on_the_order_of_rows(search, n):
    table = C.margins(*search)
    some = C.worst(table, n)
    pd.testing.assert_frame_equal(some, C.worst(table.sample(frac=1, random_state=n), n))
    missed = sorted((m, q) for q, o, m in zip(table["query"], table.outcome, table.margin) if o == "missed")[:n]
    assert list(zip(some.margin, some["query"])) == missed


def test_what_does_not_count_may_be_infinite_and_what_counts_may_not():
    d, ids = np.array([[np.inf, .2, .1]]), np.array([0, 0, 1])
    row = C.margins(d, [0], ids, np.isinf(d)).iloc[0]
    assert row.match == 1 and row.margin == pytest.approx(-.1) and row.outcome == "missed"
    for bad in (np.inf, np.nan):
        with pytest.raises(InputError, match="NaN or infinite"): C.margins(np.array([[bad, .2, .1]]), [0], ids)
        with pytest.raises(InputError, match="NaN or infinite"): C.margins(np.array([[bad, .2, .1]]), [7], ids)   # nobody to find is no excuse
    with pytest.raises(InputError, match="2 identities"): C.margins(d[:, 1:], [0, 1], ids[1:])


@fuzz
@given(searches(), st.integers(0, 2**20))
def test_camera_table_is_a_loop_over_cells(search, seed):
    d, q, g, exclude = search
    rng = np.random.default_rng(seed)
    d = rng.permuted(np.tile(np.arange(d.shape[1])/d.shape[1], (len(d), 1)), axis=1)   # the slow loop leaves ties to the sort
    q_cameras, g_cameras = rng.integers(3, 5, len(q)), rng.integers(1, 4, len(g))
    table = C.camera_table(d, q, g, q_cameras, g_cameras, exclude)
    assert not table.duplicated(["query_camera", "gallery_camera"]).any() and len(table) == (len(set(q_cameras)) + 1)*(len(set(g_cameras)) + 1)
    for row in table.itertuples(index=False):
        mine, theirs = (np.flatnonzero([camera == "all" or c == int(camera) for c in cameras]) for camera, cameras in ((row[0], q_cameras), (row[1], g_cameras)))
        part, left = d[np.ix_(mine, theirs)], None if exclude is None else exclude[np.ix_(mine, theirs)]
        valid = sum(any(g[b] == q[a] and (exclude is None or not exclude[a, b]) for b in theirs) for a in mine)
        assert (row.queries, row.valid) == (len(mine), valid)
        if not valid: assert np.isnan(row[4]) and np.isnan(row.mAP)
        else:
            curve, ap, _ = loop_scores(part, q[mine], g[theirs], left)
            np.testing.assert_allclose([row[4], row.mAP], [100*curve[0], 100*ap], atol=1e-9)


def test_the_heat_map_says_the_table():
    rows = [("10", "2", 5, 40.), ("10", "all", 5, 35.), ("9", "2", 0, np.nan), ("9", "all", 7, 90.), ("all", "2", 5, 40.), ("all", "all", 12, 70.)]
    table = pd.DataFrame(rows, columns=["query_camera", "gallery_camera", "valid", "rank-1"])
    ax, = plots.plot_cameras(table).axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["9  (7)", "10  (5)", "all  (12)"] and [t.get_text() for t in ax.get_xticklabels()] == ["2", "all"]   # by number, not by letters
    said = {t.get_position(): t.get_text() for t in ax.texts}
    assert said == {(0, 0): "–", (1, 0): "90", (0, 1): "40", (1, 1): "35", (0, 2): "40", (1, 2): "70"}
    grey, = ax.patches
    assert grey.get_xy() == (-.5, -.5) and to_rgb(grey.get_facecolor()) == to_rgb("#cccccc")
    assert len(plots.plot_cameras(pd.concat([table.assign(direction="a→b"), table.assign(direction="b→a")])).axes) == 2
    with pytest.raises(InputError, match="only cell"): plots.plot_cameras(table[table.query_camera != "10"].query("query_camera == 'all'"))
    with pytest.raises(InputError, match="without the columns"): plots.plot_cameras(table, metric="mAP")


def pictures(*lead, shape=(3, 16, 8), seed=0): return torch.randint(0, 256, (*lead, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_lists_end_where_the_gallery_ends_and_answers_stand_apart():
    d = np.array([[.1, .2, np.inf], [.1, .2, .3]])
    fig = P.plot_ranked_lists(pictures(2), pictures(2, 3), [[True, False, True], [False, False, False]], d, titles=["a\nbb", "c"], answers=pictures(2, seed=1), answer_labels=["rank 1", "rank 9"], title="what is seen")
    axes = np.array(fig.axes).reshape(2, 5)
    assert not axes[0, 3].axison and not axes[0, 3].images and axes[1, 3].images   # the third place of the first query is empty
    for r in range(2):
        np.testing.assert_array_equal(axes[r, 4].images[0].get_array(), pictures(2, seed=1)[r].permute(1, 2, 0))
        assert {s.get_edgecolor()[:3] for s in axes[r, 4].spines.values()} == {to_rgb(plots.RIGHT)} and axes[r, 4].get_xlabel() == ["rank 1", "rank 9"][r]
    gaps = np.diff([ax.get_position(original=True).x0 for ax in axes[1]])
    assert gaps[0] == pytest.approx(gaps[3]) and gaps[1] == pytest.approx(gaps[2]) and gaps[0] > 1.2*gaps[1]
    assert "what is seen" in [t.get_text() for t in fig.texts]
    box = fig.get_tightbbox()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= fig.get_figwidth() and box.y1 <= fig.get_figheight()
    with pytest.raises(InputError, match="1 answers"): P.plot_ranked_lists(pictures(2), pictures(2, 3), np.ones((2, 3), bool), answers=pictures(1))


def test_a_picture_of_maps_colours_where_they_are_bright():
    maps = torch.zeros(1, 3, 16, 8)
    maps[0, 0], maps[0, 2, :8] = torch.nan, 1
    images = pictures(1, 3)
    fig = P.plot_attention(images, maps, ["a", "b", "c"], frames=[[-1, 1, 0]], labels=[["x", "y", "z"]])
    plain, dark, half = (ax.images[0].get_array() for ax in fig.axes)
    np.testing.assert_array_equal(plain, images[0, 0].permute(1, 2, 0))
    assert np.ptp(dark, axis=2).max() < 1e-9 and np.ptp(half[8:], axis=2).max() < 1e-9 and np.ptp(half[:8], axis=2).min() > .2   # grey where the map is 0
    assert [{s.get_edgecolor()[:3] for s in ax.spines.values()} for ax in fig.axes[1:]] == [{to_rgb(plots.RIGHT)}, {to_rgb(plots.WRONG)}] and [ax.get_xlabel() for ax in fig.axes] == list("xyz")
    for change, word in ((dict(maps=maps + .5), "scale them"), (dict(maps=maps[..., :4]), "every pixel"), (dict(headings=["a"]), "1 headings"), (dict(labels=[]), "0 labels")):
        with pytest.raises(InputError, match=word): P.plot_attention(**(dict(images=images, maps=maps, headings=["a", "b", "c"]) | change))


class Toy(nn.Module):
    "A shared branch from any backbone, as both networks have it."
    def __init__(self, *layers):
        super().__init__()
        self.shared = nn.Module()
        self.shared.encoder = nn.Module()
        self.shared.encoder.backbone = nn.Sequential(*layers)

    def embed(self, images, modality): return {"v shared": self.shared.encoder.backbone(images)}


def toy(*layers, seed=0):
    torch.manual_seed(seed)
    net = Toy(*(make() for make in layers))
    return SimpleNamespace(model=net, device=torch.device("cpu"))


def closed_form(embed, images, target):
    "The map of a bias-free convolution without padding, and a mean over its positions."
    kernel = embed.model.shared.encoder.backbone[0].weight.detach().double()
    A = F.conv2d(images.double()/255, kernel, stride=embed.model.shared.encoder.backbone[0].stride)
    f = A.mean((2, 3))
    towards = F.normalize(target.double(), dim=1)
    s = (F.normalize(f, dim=1)*towards).sum(1, keepdim=True)
    small = torch.einsum("bk,bkhw->bhw", (towards - s*F.normalize(f, dim=1))/f.norm(dim=1, keepdim=True)/A[0, 0].numel(), A).relu()
    large = F.interpolate(small[:, None], images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return large/large.amax((1, 2), keepdim=True).clamp_min(1e-300)


@pytest.mark.parametrize("weights", C.WEIGHTS)
@pytest.mark.parametrize("size, stride", [(1, 1), (4, 4)])
def test_attention_is_known_for_a_linear_network(weights, size, stride):
    embed, images, t = toy(lambda: nn.Conv2d(3, 6, size, stride, bias=False), lambda: nn.AdaptiveAvgPool2d(1), nn.Flatten), pictures(5), torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(C.attention_maps(embed, images, 1, t, weights=weights).double(), closed_form(embed, images, t), rtol=0, atol=1e-4)
    torch.testing.assert_close(C.attention_maps(embed, images, 1, t[:1], weights=weights).double(), closed_form(embed, images, t[:1].expand(5, -1)), rtol=0, atol=1e-4)


def test_element_by_element_follows_a_head_that_knows_places():
    "Only the upper half is read: element by element the lower half stays dark, the mean of Grad-CAM does not know where."
    embed = toy(lambda: nn.Conv2d(3, 4, 1, bias=False), lambda: nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten, lambda: nn.Linear(8, 5, bias=False))
    with torch.no_grad(): embed.model.shared.encoder.backbone[3].weight.view(5, 4, 2)[..., 1] = 0
    by_channel, by_element = (C.attention_maps(embed, pictures(6), 0, torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), weights=w) for w in C.WEIGHTS)
    assert by_element[:, 8:].max() < 1e-6 and by_element[:, :8].amax((1, 2)).min() > .99 and by_channel[:, 8:].max() > .1


def test_length_and_a_map_without_anything():
    embed = toy(lambda: nn.Conv2d(3, 6, 1, bias=False), lambda: nn.AdaptiveAvgPool2d(1), nn.Flatten)
    images = pictures(3)
    A = F.conv2d(images/255, embed.model.shared.encoder.backbone[0].weight.detach())
    small = torch.einsum("bk,bkhw->bhw", A.mean((2, 3)), A).relu()
    torch.testing.assert_close(C.attention_maps(embed, images, 0, None), small/small.amax((1, 2), keepdim=True), rtol=0, atol=1e-4)
    assert (C.attention_maps(embed, torch.zeros_like(images), 0, torch.ones(1, 6)) == 0).all()   # a map of zeros, not of NaN


@pytest.fixture(scope="module")
def nets():
    torch.manual_seed(0)
    conv = ReIDNet(5, width=4, features=16, z_features=8, hidden=(8,))
    return dict(conv=conv, resnet50=ReIDNet(5, backbone="resnet50", z_features=8, hidden=(8,)), lean=TwoStreamNet(5, width=4, features=16, z_features=8, hidden=(8,), pooling="gem"))


@pytest.mark.parametrize("name, layer", [("conv", "3"), ("resnet50", "trunk.layer4.2")])
def test_the_last_map_before_pooling_is_found(nets, name, layer):
    backbone, seen = nets[name].shared.encoder.backbone.eval(), []
    handle = dict(backbone.named_modules())[layer].register_forward_hook(lambda m, i, o: seen.append(o))
    with torch.no_grad(), C.last_map(backbone) as kept: backbone(torch.rand(1, 3, 64, 32))
    handle.remove()
    assert kept[0] is seen[0] and kept[0].ndim == 4 and kept[0].shape[2]*kept[0].shape[3] > 4


@pytest.mark.parametrize("name", ["conv", "resnet50", "lean"])
def test_attention_leaves_the_network_as_it_was(nets, name):
    net = copy.deepcopy(nets[name]).train()
    net.shared.encoder.norm.eval()   # a mixed state
    next(net.parameters()).grad = torch.ones_like(next(net.parameters()))
    for p in list(net.shared.parameters())[:3]: p.requires_grad_(False)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    before = [(m.training, len(m._forward_hooks)) for m in net.modules()], [(p.requires_grad, None if p.grad is None else p.grad.sum().item()) for p in net.parameters()]
    embed, images = SimpleNamespace(model=net, device=torch.device("cpu")), pictures(5, shape=(3, 64, 32))
    t = torch.randn(5, net.shared.encoder.out_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): maps = C.attention_maps(embed, images, 1, t, batch_size=2)
    with pytest.raises(InputError, match="no feature"): C.attention_maps(embed, images, 1, t, "w")
    assert before == ([(m.training, len(m._forward_hooks)) for m in net.modules()], [(p.requires_grad, None if p.grad is None else p.grad.sum().item()) for p in net.parameters()])
    for k, v in net.state_dict().items(): assert torch.equal(v, state[k]), k
    assert maps.shape == (5, 64, 32) and maps.min() >= 0 and maps.max() <= 1 and not maps.requires_grad
    alone = torch.cat([C.attention_maps(embed, images[k:k + 1], 1, t[k:k + 1]) for k in range(5)])
    torch.testing.assert_close(maps, alone, rtol=0, atol=2e-3)
    with torch.no_grad(): features = net.eval().embed(images/255, 1)
    for feature in features: assert C.attention_maps(embed, images[:1], 1, features[feature][1:2], feature, weights="element").isfinite().all()


def test_attention_says_what_does_not_fit(nets):
    embed = SimpleNamespace(model=nets["conv"], device=torch.device("cpu"))
    for options, word in ((dict(weights="pixel"), "'channel' or 'element'"), (dict(target=torch.ones(3, 16)), "needed: a feature for each of 2"), (dict(target=torch.ones(16)), "needed: a feature")):
        with pytest.raises(InputError, match=word): C.attention_maps(**(dict(embed=embed, images=pictures(2, shape=(3, 64, 32)), modality=0, target=torch.ones(1, 16)) | options))
    flat = toy(nn.Flatten, lambda: nn.Linear(3*16*8, 4))
    with pytest.raises(InputError, match="no convolution"): C.attention_maps(flat, pictures(2), 0, torch.ones(1, 4))


def test_covering_finds_the_only_place_that_is_read():
    class Corner(nn.Module):
        def __call__(self, images, modality): return {"x": torch.stack([images[:, 0, 1, 1].float(), torch.full((len(images),), 50.)], 1)}
    images = torch.full((2, 3, 16, 8), 10, dtype=torch.uint8)
    images[:, :, 1, 1] = 250
    fall = C.occlusion_maps(Corner(), images, 0, torch.tensor([[1., 0.]]), "x", size=4, step=2)
    assert (fall[:, 1, 1] > .1).all() and fall[:, 6:].abs().max() < 1e-5 and (images[:, :, 1, 1] == 250).all()
    mean = images.float().mean((2, 3))[0, 0].to(torch.uint8).item()
    cosine = lambda x: x/np.hypot(x, 50)
    np.testing.assert_allclose(fall[0, 0, 0], cosine(250) - cosine(mean), atol=1e-5)   # every square over the corner covers the place, too


def quiet(f, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return f(*args, **options)


def make_pairs(folder, scenes=8):
    rng = np.random.default_rng(0)
    for m in ("visible", "infrared"): (folder/m).mkdir(parents=True)
    for k in range(scenes):
        x = rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)
        Image.fromarray(x).save(folder/"visible"/f"{k:02d}.png")
        Image.fromarray(x[..., 0]).save(folder/"infrared"/f"{k:02d}.png")
    return f"pairs:{folder}", {}


def make_csv(folder, people=12):
    rng, lines = np.random.default_rng(0), ["path,identity,modality,split,camera"]
    folder.mkdir()
    for i in range(people):
        for m, camera in (("visible", 1), ("visible", 2), ("infrared", 3)):
            Image.fromarray(rng.integers(0, 256, (16, 8, 3), dtype=np.uint8)).save(folder/f"{i}-{camera}.png")
            lines.append(f"{i}-{camera}.png,p{i},{m},{'test' if i > 7 else 'train'},{camera}")
    (folder/"all.csv").write_text("\n".join(lines))
    return f"csv:{folder/'all.csv'}", {"data.image_size": [32, 16]}


def make_tree(plant, kind, **people): return lambda folder: (f"{kind}:{plant(folder, image_size=(16, 8), **people)}", {"data.image_size": [32, 16]})


DATASETS = dict(synthetic=lambda folder: ("synthetic", {"data.identities": (6, 3, 4)}), pairs=make_pairs, csv=make_csv, sysu=make_tree(fake_sysu, "sysu", people=(4, 2, 3)), regdb=make_tree(fake_regdb, "regdb", people=12), llcm=make_tree(fake_llcm, "llcm", people=(8, 4)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Kind -> (folder of a finished run, its dataset)."
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for kind, make in DATASETS.items():
        spec, options = make(folder/kind)
        trainer = quiet(Trainer, configure(spec, "full", recipe="scratch" if kind == "pairs" else None, **SMALL, **options), folder/f"run-{kind}")
        trainer.fit()
        found[kind] = folder/f"run-{kind}", trainer.dataset
    return found


@pytest.mark.parametrize("kind", DATASETS)
def test_every_kind_of_dataset_gets_its_cases(runs, kind):
    run, dataset = runs[kind]
    paths = C.write_cases(run, dataset, queries=2, depth=3, device="cpu")
    assert all(p.parent == run and p.stat().st_size for p in paths) and len(set(paths)) == len(paths) and not list(run.glob(".*"))
    table, cells = pd.read_csv(run/"cases.csv"), pd.read_csv(run/"cameras.csv")
    found = report.searches(dataset, seed=0)
    assert list(table.groupby("direction", sort=False).size().items()) == [(s.direction, len(s.query)) for s in found]
    corner = cells[(cells.query_camera == "all") & (cells.gallery_camera == "all")].set_index("direction")
    records = dataset.records
    for s in found:
        part = table[table.direction == s.direction].reset_index(drop=True)
        valid = part[part.outcome != "no match"]
        np.testing.assert_allclose([100*(valid.outcome == "found").mean(), 100*valid.average_precision.mean(), len(valid)], corner.loc[s.direction, ["rank-1", "mAP", "valid"]].astype(float), atol=1e-9)
        assert (part["query"] == s.query).all() and (part.protocol == s.protocol).all() and (records.camera.to_numpy()[part["query"]] == part.query_camera).all()
        assert (records.identity.to_numpy()[valid.match.astype(int)] == valid.identity).all() and valid.match.isin(s.gallery).all() and part.match[part.outcome == "no match"].isna().all()
        there = part[part.other.notna()]
        assert (records.identity.to_numpy()[there.other.astype(int)] == there.other_identity).all() and (there.other_identity != there.identity).all()
        named = records.path.astype(str).to_numpy() if "path" in records else np.arange(len(records))
        assert (named[part["query"]] == part.query_image).all() and (named[there.other.astype(int)] == there.other_image).all()
    names, missed = {p.name for p in paths}, set(table.direction[table.outcome == "missed"])
    assert {f"{what}_{report.slug(d)}.png" for d in missed for what in ("failures", "attention")} == names - {"cases.csv", "cameras.csv", "cameras.png"}
    one = kind in ("pairs", "regdb")   # a camera a modality
    assert ("cameras.png" in names) != one and ("no table by camera" in C.cases_text(run)) == one
    assert C.cases_text(run).count("queries missed") == len(found)


def test_the_headline_feature_of_the_run_is_the_one_that_is_told(runs):
    run, dataset = runs["synthetic"]
    twice = [[p.read_bytes() for p in C.write_cases(run, dataset, queries=1, depth=1, device="cpu") if p.suffix == ".csv"] for _ in range(2)]
    assert twice[0] == twice[1]
    results = pd.read_csv(run/"results.csv")
    stored, table = results[results.headline & (results.metric == "rank-1")].set_index("direction"), pd.read_csv(run/"cases.csv")
    assert set(table.feature) == set(stored.feature)
    for direction, part in table.groupby("direction"): assert 100*(part.outcome == "found").mean() == pytest.approx(stored.value[direction])
    with pytest.raises(InputError, match="no cases.csv"): C.cases_text(run.parent)
    with pytest.raises(InputError, match="no run"): C.write_cases(run.parent, dataset)


def test_a_failure_shows_the_wrong_ones_the_right_one_and_their_numbers(runs):
    run, dataset = runs["synthetic"]
    s, ids = report.searches(dataset)[0], dataset.records.identity.to_numpy()
    d = np.random.default_rng(0).random((len(s.query), len(s.gallery)))
    table = C.margins(d, ids[s.query], ids[s.gallery])
    some = C.worst(table, 3)
    fig = C.failure_figure(dataset, s, d, table, 3, 4)
    axes = np.array(fig.axes).reshape(3, 6)
    for row, case in zip(axes, some.itertuples()):
        np.testing.assert_array_equal(row[0].images[0].get_array(), dataset.images([s.query[case.query]])[0].permute(1, 2, 0))
        np.testing.assert_array_equal(row[1].images[0].get_array(), dataset.images([s.gallery[case.other]])[0].permute(1, 2, 0))
        np.testing.assert_array_equal(row[-1].images[0].get_array(), dataset.images([s.gallery[case.match]])[0].permute(1, 2, 0))
        assert row[0].get_ylabel() == f"margin −{-case.margin:.3f}" and row[-1].get_xlabel() == f"{case.match_distance:.2f}, rank {case.first_rank}"
        assert row[1].get_xlabel() == f"{case.other_distance:.2f}" and to_rgb(row[1].spines["left"].get_edgecolor()) == to_rgb(plots.WRONG)
    title = fig.texts[0].get_text().replace("\n", " ")
    assert title == f"{(table.outcome == 'missed').sum()} of {len(table)} infrared queries missed; the 3 most confident mistakes"
    with pytest.raises(InputError, match="no failure"): C.failure_figure(dataset, s, d, table[table.outcome == "found"])


def exact(images, modality): # signs, 64 of them: cosines without rounding, whatever the batch
    noise = torch.randn(images[0].numel(), 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return dict(x=((images.double() - 128).flatten(1) @ noise).sign())


def with_images_of_their_own(dataset): # made-up trees show a person alike at every camera
    dataset, looks = copy.copy(dataset), pictures(len(dataset))
    dataset.images = lambda rows, draw=0: looks[torch.as_tensor(np.asarray(rows))]
    return dataset


@pytest.mark.parametrize("kind, cmc", [("sysu", "identity"), ("regdb", "image"), ("llcm", "identity")])
def test_searches_are_the_first_trial_of_the_published_protocol(runs, kind, cmc):
    dataset = with_images_of_their_own(runs[kind][1])
    ids, found = dataset.records.identity.to_numpy(), report.searches(dataset)
    rows, x = report.search_features(dataset, exact, found, "x")
    published = {s.direction: s for _, s in official_scores(dataset, exact, modes=("all",), shots=(1,), trials=1)}
    assert list(published) == [s.direction for s in found]
    for s in found:
        d = report.search_distances(s, rows, x)
        ours = retrieval_scores(d, ids[s.query], ids[s.gallery], exclude=s.exclude, cmc=cmc)
        np.testing.assert_array_equal(ours.average_precision, published[s.direction].trials[0].average_precision)
        np.testing.assert_array_equal(ours.first_rank, published[s.direction].trials[0].first_rank)
        modality = dataset.records.modality.to_numpy()
        assert (modality[s.query] == s.asking).all() and (modality[s.gallery] == 1 - s.asking).all() and (dataset.records.split.to_numpy()[np.r_[s.query, s.gallery]] == "test").all()
        if s.exclude is not None: assert s.exclude.any() and (np.isinf(d) == s.exclude).all()


def test_sysu_without_its_draw_and_a_split_of_ones_own(runs):
    dataset = with_images_of_their_own(runs["sysu"][1])
    dataset.permutations = None
    s, = report.searches(dataset)
    published, = [x for _, x in official_scores(dataset, exact, modes=("all",), shots=(1,), trials=1, draw="agw")]
    rows, x = report.search_features(dataset, exact, [s], "x")
    ids = dataset.records.identity.to_numpy()
    np.testing.assert_array_equal(retrieval_scores(report.search_distances(s, rows, x), ids[s.query], ids[s.gallery], exclude=s.exclude).average_precision, published.trials[0].average_precision)
    assert "draw of AGW" in s.protocol
    there, back = report.searches(dataset, dataset.indices("val"))   # no published protocol for these
    assert there.exclude is None and set(dataset.records.split.to_numpy()[there.query]) == {"val"} and (there.query == back.gallery).all() and "gallery of all identities" in there.protocol


@pytest.mark.parametrize("kind", ["sysu", "llcm", "pairs"])
def test_ranked_lists_of_a_run_follow_the_protocol(runs, kind, monkeypatch):
    run, dataset = runs[kind]
    shown = []
    draw = P.plot_ranked_lists
    monkeypatch.setattr(report, "embedding_figure", lambda *a: plt.figure())   # UMAP is slow, and not the point
    monkeypatch.setattr(report, "plot_ranked_lists", lambda *a, **k: shown.append(a) or draw(*a, **k))
    paths = report.write_pictures(run, dataset, queries=3, depth=4, device="cpu")
    found = report.searches(dataset, seed=0)
    assert [p.stem for p in paths if p.stem.startswith("ranked")] == [f"ranked_{report.slug(s.direction)}" for s in found]
    for s, (queries, gallery, matches, distances) in zip(found, shown):
        allowed = {x.numpy().tobytes() for x in dataset.images(s.gallery)}
        assert all(x.numpy().tobytes() in allowed for x in gallery.flatten(0, 1)) and (np.diff(distances) >= 0).all()


def test_an_excluded_image_is_in_no_list():
    dataset = load_dataset("synthetic", identities=(1, 1, 3), images_per_camera=1)
    s = report.searches(dataset)[0]
    d = np.random.default_rng(0).random((len(s.query), len(s.gallery)))
    first = d[0].argmin()
    d[0, first] = np.inf
    fig = report.ranked_figure(dataset, s, d, [0], len(s.gallery))
    shown = [ax for ax in fig.axes[1:] if ax.images]
    assert len(shown) == len(s.gallery) - 1 and [float(ax.get_xlabel()) for ax in shown] == sorted(round(x, 2) for x in d[0][np.isfinite(d[0])])


def test_a_query_with_nobody_to_find_is_told_apart(runs, monkeypatch):
    run, dataset = runs["csv"]
    there, back = report.searches(dataset)
    ids = dataset.records.identity.to_numpy()
    exclude = np.zeros((len(there.query), len(there.gallery)), bool)
    exclude[0], exclude[1] = ids[there.gallery] == ids[there.query[0]], True   # no right image; no image at all
    monkeypatch.setattr(C, "searches", lambda *a: [report.Search(there.direction, there.query, there.gallery, exclude, "made up")])
    C.write_cases(run, dataset, queries=1, depth=2, device="cpu")
    table = pd.read_csv(run/"cases.csv")
    assert list(table.outcome[:2]) == ["no match"]*2 and not (table.outcome[2:] == "no match").any()
    for name in ("match", "other"):
        for column in (name, f"{name}_camera", f"{name}_image", f"{name}_distance"): assert list(table[column].isna()) == [name == "match", True] + [False]*(len(table) - 2), column
    assert table.margin[:2].isna().all() and "2 have nobody to find" in C.cases_text(run)


class TwoStems(Toy):
    "A stem for each modality before the trunk that they share, as the lean network has it."
    def __init__(self, *layers):
        super().__init__(*layers)
        self.stems = nn.ModuleList(nn.Conv2d(3, 3, 3, 2, 1) for _ in range(2))

    def embed(self, images, modality): return {"v shared": self.shared.encoder.backbone(self.stems[modality](images))}


def test_stems_of_their_own_are_no_part_of_the_shared_map():
    torch.manual_seed(0)
    net = TwoStems(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(inplace=True)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    embed, images, t = SimpleNamespace(model=net, device="cpu"), pictures(3), torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    for modality in (0, 1):
        A = net.shared.encoder.backbone[0](net.stems[modality](images/255)).detach()
        f = A.mean((2, 3))
        s = F.cosine_similarity(f, t)[:, None]
        small = torch.einsum("bk,bkhw->bhw", F.normalize(t, dim=1) - s*F.normalize(f, dim=1), A).relu()
        large = F.interpolate(small[:, None], (16, 8), mode="bilinear", align_corners=False)[:, 0]
        torch.testing.assert_close(C.attention_maps(embed, images, modality, t), large/large.amax((1, 2), keepdim=True), rtol=0, atol=1e-4)
