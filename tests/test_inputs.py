"Values as people have them: every public function that takes numbers or labels gives the same for arrays, lists and frames as for tensors."
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from vdistill.looking import audit_bounds, cases, pictures, plots, probes, promises, widgets
from vdistill import bottlenecks, bounds, columns, distillation, information, knowledge_distillation, large_batches
from vdistill.reid import evaluation, identity_losses, metric_losses, protocols, reranking, retrieval
from vdistill.reid.batches import IdentitySampler
from vdistill.core import InputError, LogitsWarning, as_array, as_label_array, as_labels, as_tensor, as_tensors, generator
from vdistill.distillation import vsd_loss

RNG = np.random.default_rng(0)
X, Y, SQUARE = (RNG.standard_normal(shape).round(2) for shape in ((8, 3), (8, 3), (8, 8))) # exact in no format, equal in all after rounding to float16
X, Y, SQUARE = (x.astype(np.float16).astype(np.float64) for x in (X, Y, SQUARE))
IDS, OTHER = np.array([3, 3, 7, 7, 9, 9, 12, 12]), np.array([7, 3, 9, 12, 3, 9, 7, 12])
NAMES = np.array(["anna", "anna", "bo", "bo", "carl", "carl", "dora", "dora"])
TABLE = np.array([[.25, .125], [.125, .5]])


def frozen(x):
    x = np.array(x)
    x.flags.writeable = False
    return x


NUMBERS = {"big-endian": lambda x: x.astype(">f4"), "big-endian, double": lambda x: x.astype(">f8"), "long": lambda x: x.astype(np.longdouble), "half": lambda x: x.astype(np.float16), "single": lambda x: x.astype(np.float32), "read-only": frozen,
           "backwards": lambda x: x[::-1].copy()[::-1], "columns first": np.asfortranarray, "list": lambda x: x.tolist(), "rows": list, "frame": lambda x: pd.DataFrame(x) if x.ndim == 2 else pd.Series(x), "objects": lambda x: x.astype(object), "list of tensors": lambda x: list(torch.from_numpy(x.copy()))}

TAKES_NUMBERS = { # name -> function of a converter
    "kl_divergence": lambda f: information.kl_divergence(f(X), f(Y)), "js_divergence": lambda f: information.js_divergence(f(X), f(Y)), "cross_entropy": lambda f: information.cross_entropy(f(X), f(Y)),
    "entropy": lambda f: information.entropy(f(TABLE)), "mutual_information": lambda f: information.mutual_information(f(TABLE), 0, 1), "relative_entropy": lambda f: information.relative_entropy(f(TABLE), f(TABLE.T.copy()[::-1])),
    "conditional": lambda f: information.conditional(f(TABLE), 0, 1), "extend": lambda f: information.extend(information.Table([.5, .5], "a"), "b", "a", f(np.array([[.25, .75], [.5, .5]]))).p, "marginal": lambda f: information.marginal(f(TABLE), 0).p,
    "vsd_loss": lambda f: distillation.vsd_loss(f(X), f(Y)), "vcd_loss": lambda f: distillation.vcd_loss(f(X), f(Y)), "vml_loss": lambda f: distillation.vml_loss(f(X), f(Y)), "released_loss": lambda f: distillation.released_loss(f(X), f(Y)),
    "kd_loss": lambda f: knowledge_distillation.kd_loss(f(X), f(Y)), "cosines": lambda f: knowledge_distillation.cosines(f(X), f(Y)), "mutual_learning": lambda f: identity_losses.mutual_learning(f(X), f(Y)), "released_sinkhorn": lambda f: metric_losses.released_sinkhorn(f(X), f(Y)),
    "unit_distances": lambda f: identity_losses.unit_distances(f(X), f(Y)), "euclidean_distances": lambda f: metric_losses.euclidean_distances(f(X), f(Y)), "masked_softmax": lambda f: metric_losses.masked_softmax(f(SQUARE), (SQUARE > 0).tolist()),
    "batch_hard": lambda f: metric_losses.batch_hard(f(SQUARE), IDS[:, None] == OTHER, IDS[:, None] != OTHER, weight=f(X[:, 0]**2)), "weighted_triplet": lambda f: metric_losses.weighted_triplet(f(SQUARE), IDS[:, None] == OTHER, IDS[:, None] != OTHER), "hardest": lambda f: identity_losses.hardest(f(SQUARE), IDS[:, None] == OTHER, 1.),
    "vib_loss": lambda f: bottlenecks.vib_loss(f(X), [0, 1, 2, 0, 1, 2, 0, 1], f(X[:, 0]**2)), "gaussian_kl": lambda f: bottlenecks.gaussian_kl(f(X), f(Y)), "js_information": lambda f: bottlenecks.js_information(f(SQUARE)),
    **{name: lambda f, name=name: getattr(bounds, name)(f(SQUARE)) for name in ("cpc", "ml_cpc", "nwj", "dv", "js", "smile", "tuba", "interpolated", "js_loss", "club", "leave_one_out")},
    "negatives": lambda f: bounds.ml_cpc(f(X[:, 0]), f(SQUARE)), "ba": lambda f: bounds.ba(f(X[:, 0])), "skew_kl": lambda f: bounds.skew_kl(f(X[:, 0]), .1), "optimal_critic": lambda f: bounds.optimal_critic(f(X[:, 0]), epsilon=.1), "log_density_ratio": lambda f: bounds.log_density_ratio(f(SQUARE), bound="dv")[0],
    "ml_cpc_embedded": lambda f: large_batches.ml_cpc_embedded(f(X), f(Y)), "outcomes": lambda f: bounds.outcomes(f(TABLE), 2, 2)[3], "as_columns": lambda f: columns.as_columns(f(X)),
    "pairwise_distances": lambda f: retrieval.pairwise_distances(f(X), f(Y)), "euclidean": lambda f: retrieval.pairwise_distances(f(X), f(Y), "euclidean"), "retrieval_scores": lambda f: retrieval.retrieval_scores(f(SQUARE**2), IDS, OTHER).mean_ap,
    "rerank": lambda f: reranking.rerank(f(X), f(Y), 3, 2), "rerank_densely": lambda f: reranking.rerank_densely(f(X), f(Y), 3, 2), "llcm_scores": lambda f: next(iter(protocols.llcm_scores(f(X), IDS, IDS, f(Y), OTHER, OTHER + 1).values())).mean.mean_ap,
    "regdb_scores": lambda f: next(iter(protocols.regdb_scores([(f(X), IDS, f(Y), OTHER)]).values())).mean.mean_ap, "score_features": lambda f: [r["value"] for r in evaluation.score_features({"v": (f(X), f(Y))}, IDS, OTHER)],
    "camera_table": lambda f: cases.camera_table(f(SQUARE**2), IDS, OTHER, IDS, OTHER)["mAP"], "embed_2d": lambda f: pictures.embed_2d(f(X), "pca")[0], "modality_purity": lambda f: promises.modality_purity(f(X), f(Y), 3)[0], "mmd": lambda f: promises.mmd(f(X), f(Y), permutations=2).value,
    "barber_agakov": lambda f: probes.barber_agakov(f(-math.log(2)*np.array([[1., 2., 2.]]*8)), [0, 1, 2, 0, 1, 2, 0, 1])[0], "compare_logits": lambda f: widgets.compare_logits(f(X[0]), f(Y[0]))["nats"]["KL[p‖q]"],
}


def plain(x): return np.asarray(x.detach() if torch.is_tensor(x) else x, dtype=float)


@pytest.mark.parametrize("name", TAKES_NUMBERS)
def test_numbers_in_any_dress(name):
    function = TAKES_NUMBERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=bounds.BoundWarning)
        truth = plain(function(lambda x: torch.from_numpy(np.ascontiguousarray(x)).double()))
        for kind, convert in NUMBERS.items():
            if (name, kind) == ("barber_agakov", "half"): continue                        # its rows have to sum to 1 closely
            np.testing.assert_allclose(plain(function(convert)), truth, rtol=2e-5, atol=3e-6, err_msg=kind)


WHOLE = {"int32": lambda x: x.astype(np.int32), "uint8": lambda x: x.astype(np.uint8), "uint16": lambda x: x.astype(np.uint16), "uint64": lambda x: x.astype(np.uint64), "big-endian": lambda x: x.astype(">i8"), "read-only": frozen, "list": lambda x: x.tolist(), "tensor": lambda x: torch.from_numpy(x.copy()), "small tensor": lambda x: torch.from_numpy(x.astype(np.uint8)),
         "series": pd.Series, "Int64": lambda x: pd.Series(x, dtype="Int64"), "objects": lambda x: x.astype(object), "category": lambda x: pd.Series(x).astype("category"), "tuple": lambda x: tuple(x.tolist())}
WORDS = {"names": lambda x: [f"person {k:02d}" for k in x], "array": lambda x: np.array([f"p{k:02d}" for k in x]), "bytes": lambda x: np.array([f"p{k:02d}".encode() for k in x]), "objects": lambda x: np.array([f"p{k:02d}" for k in x], dtype=object), "strings": lambda x: pd.Series([f"p{k:02d}" for k in x], dtype="string"), "category": lambda x: pd.Series([f"p{k:02d}" for k in x]).astype("category")}
A, B = (torch.from_numpy(x).float() for x in (X, Y))
SIDE = np.arange(8) // 4
TAKES_LABELS = {
    "cross_modal_triplet": lambda f: identity_losses.cross_modal_triplet(A, B, f(IDS), f(OTHER)), "the same on both sides": lambda f: identity_losses.cross_modal_triplet(A, B, f(IDS)),
    "pair_masks": lambda f: metric_losses.pair_masks(f(IDS), f(SIDE), "across")[0], "within": lambda f: metric_losses.pair_masks(f(IDS), f(SIDE), "within")[1], "identity_centres": lambda f: metric_losses.identity_centres(A, f(IDS), f(OTHER))[0],
    "hetero_centre": lambda f: metric_losses.hetero_centre(A, B, f(IDS), f(OTHER)), "hetero_centre_triplet": lambda f: metric_losses.hetero_centre_triplet(A, B, f(IDS), f(OTHER)), "released_rank": lambda f: metric_losses.released_rank(A, f(IDS), f(SIDE)),
    "retrieval_scores": lambda f: retrieval.retrieval_scores(SQUARE, f(IDS), f(OTHER)).mean_ap, "chance_scores": lambda f: retrieval.chance_scores(f(IDS), f(OTHER)).mean_ap, "llcm_scores": lambda f: next(iter(protocols.llcm_scores(A, f(IDS), IDS, B, f(OTHER), OTHER + 1).values())).mean.mean_ap,
    "regdb_scores": lambda f: next(iter(protocols.regdb_scores([(A, f(IDS), B, f(OTHER))]).values())).mean.mean_ap, "camera_table": lambda f: cases.camera_table(SQUARE, f(IDS), f(OTHER), IDS, OTHER)["mAP"],
    "image_splits": lambda f: probes.image_splits(f(np.repeat(IDS[::2], 8)), 2)[0].test, "group_splits": lambda f: probes.group_splits(f(np.repeat(IDS[::2], 5)), 2)[0].test, "as_factor": lambda f: probes.as_factor(f(IDS)).labels, "sufficiency": lambda f: promises.sufficiency(np.repeat(X, 4, 0) + np.arange(32)[:, None] % 4*.01, f(np.repeat(IDS, 4)))["accuracy"].values,
    "purity": lambda f: promises.modality_purity(X, Y, 3, f(np.r_[IDS, OTHER]))[0], "mmd": lambda f: promises.mmd(X, Y, f(np.r_[IDS, OTHER]), permutations=3).null, "IdentitySampler": lambda f: [*IdentitySampler(f(np.r_[IDS, OTHER]), np.repeat([0, 1], 8), 2, 1)][0][0],
    "pair_rows": lambda f: audit_bounds.pair_rows(f(np.r_[np.arange(12), np.arange(12)]), np.repeat([0, 1], 12))[1],
}
CLASSES = {"vib_loss": lambda f: bottlenecks.vib_loss(A, f(np.arange(8) % 3), A[:, 0]**2), "memory bank": lambda f: knowledge_distillation.MemoryBank(f(np.arange(8) % 3), 4).negatives(f(np.array([0, 1])), 5, generator("bank")),
           "cameras": lambda f: next(iter(protocols.llcm_scores(A, IDS, f(IDS), B, OTHER, f(OTHER + 1)).values())).mean.mean_ap, "barber_agakov": lambda f: probes.barber_agakov(np.log([[.5, .25, .25]]*8), f(np.arange(8) % 3), f(IDS))[0]}


@pytest.mark.parametrize("name", [*TAKES_LABELS, *CLASSES])
def test_labels_in_any_dress(name):
    function = (TAKES_LABELS | CLASSES)[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        truth = plain(function(lambda x: torch.from_numpy(x.copy())))
        for kind, convert in (WHOLE | {f"names as {k}": f for k, f in WORDS.items()} if name in TAKES_LABELS else WHOLE).items():
            np.testing.assert_allclose(plain(function(convert)), truth, rtol=1e-6, err_msg=kind)


@pytest.mark.parametrize("name", [n for n in TAKES_NUMBERS if n != "as_columns"]) # which takes text
def test_what_is_no_number_is_refused_in_a_sentence(name):
    for convert in (lambda x: np.full(x.shape, "n.d."), lambda x: x.astype(complex)):
        with pytest.raises(InputError) as said: TAKES_NUMBERS[name](convert); pytest.fail(f"{name}: nothing was said")
        assert "\n" not in str(said.value) and len(str(said.value)) > 20


@pytest.mark.parametrize("name", [n for n in TAKES_LABELS if n not in ("as_factor",)])
def test_labels_that_are_none_are_refused_in_a_sentence(name):
    for convert in (lambda x: np.array([None]*len(x)), lambda x: x.astype(complex)):
        with pytest.raises(InputError): TAKES_LABELS[name](convert)
    if name in ("cross_modal_triplet", "identity_centres", "hetero_centre", "hetero_centre_triplet", "retrieval_scores", "chance_scores"):
        kinds = iter((lambda x: x, WORDS["names"]))
        with pytest.raises(InputError, match="never match"): TAKES_LABELS[name](lambda x: next(kinds)(x))


def test_tensors_stay_what_they_are():
    x, label = torch.ones(2, 3, requires_grad=True), torch.tensor([1, 2], dtype=torch.uint8)
    assert as_tensor(x) is x and as_tensors(x, x) == (x, x) and as_labels(label, None)[0] is label
    assert as_tensor([x[0], x[1]]).requires_grad and as_tensor([[1, 2]]).dtype == torch.int64 and as_tensor([True]).dtype == torch.bool and as_tensor([.5]).dtype == torch.float64
    meta = torch.ones(2, device="meta")
    assert as_tensor([1.], like=meta).device.type == "meta" and as_tensors([1.], meta)[0].device.type == "meta" and as_labels(["a"], like=meta)[0].device.type == "meta" and as_labels(meta, [1])[1].device.type == "meta"
    loss = distillation.vsd_loss(X, z := torch.tensor(Y, requires_grad=True))
    loss.backward()
    assert z.grad is not None


def test_nothing_is_written_back_and_whole_numbers_stay_whole():
    before = X.copy(), IDS.copy()
    for function in TAKES_NUMBERS.values(): function(lambda x: x)
    for function in TAKES_LABELS.values(): function(lambda x: x)
    assert (X == before[0]).all() and (IDS == before[1]).all()
    far = np.array([2**53, 2**53 + 1])                                                  # one number to float64, which is what int64 beside uint64 becomes
    assert retrieval.retrieval_scores([[0., 1.], [1., 0.]], far, far.astype(np.uint64)).mean_ap == 1
    assert as_label_array([3., 4.]).dtype == np.int64
    for bad, word in (([.5], "not whole"), ([math.nan], "not whole"), ([[1]], "shape"), (np.array([2**63], np.uint64), "2⁶³")):
        with pytest.raises(InputError, match=word): as_labels(bad)
    for bad in ([[1, 2], [3]], [1, None], np.array([2**70]), np.array(["2020-01-01"], "datetime64[D]")):
        with pytest.raises(InputError): as_tensor(bad)
    assert as_array(torch.ones(2, dtype=torch.bfloat16)).dtype == np.float32


@pytest.mark.parametrize("labels", [[1, "1", 2], ["a", float("nan")], ["a", True], np.ma.masked_array([1, 2, 3], [False, True, False])], ids=["number and name", "no name", "truth", "masked"])
def test_labels_of_several_kinds_are_not_made_one(labels):
    with pytest.raises(InputError, match="labels holds"): as_labels(labels)


def test_probabilities_are_told_of_once_a_call():
    p = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    with pytest.warns(LogitsWarning) as told: vsd_loss(p, p.flip(0))
    assert len(told) == 1
