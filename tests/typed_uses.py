"""Every public name, used rightly and wrongly, for a type checker: `tests/test_types.py` runs mypy over this file, nothing imports it.

A wrong use ends in `type: ignore[...]`. One that the checker lets through is an ignore that nothing needs, which it reports."""
from typing import Any, assert_type
import numpy as np, pandas as pd
from numpy.typing import NDArray
from torch import Tensor
import vdistill as vd
from vdistill import __version__
from vdistill.bottlenecks import InformationBottleneck, VariationalBottleneck
from vdistill.bounds import alpha_floor, ceiling, cpc, dv, js, ml_cpc, nwj, smile, tuba
from vdistill.reid.data import load_dataset
from vdistill.reid.records import ReIDDataset
from vdistill.distillation import VariationalDistillation, released_loss, vcd_loss, vml_loss, vsd_loss
from vdistill.estimation import MIEstimate, correlated_gaussian, estimate_mi
from vdistill.tasks import Task
from vdistill.reid.evaluation import ProtocolScores, RetrievalScores, llcm_scores, regdb_scores, rerank, retrieval_scores, sysu_scores
from vdistill.information import Table, entropy, js_divergence, kl_divergence, mutual_information
from vdistill.reid.training import TrainConfig, Trainer

def information(logits: Tensor, array: NDArray[np.float64], table: Table) -> None:
    for joint in (array, table, logits, [[.5, 0.], [0., .5]]): entropy(joint), mutual_information(joint, 0, 1)
    entropy(table, "y"), entropy(table, ["y", "z"], given="v"), mutual_information(table, "y", ("v", "z"), given=["x"])
    entropy(None)  # type: ignore[arg-type]
    entropy(table, given=.5)  # type: ignore[arg-type]
    mutual_information(table, "y")  # type: ignore[call-arg]
    mutual_information(table, "y", None)  # type: ignore[arg-type]
    assert_type(kl_divergence(logits, logits), Tensor)
    assert_type(js_divergence(logits, logits, temperature=2, reduction="none"), Tensor)
    kl_divergence(logits, array)  # type: ignore[arg-type]
    kl_divergence(logits, logits, reduction=None)  # type: ignore[arg-type]
    js_divergence(logits, logits, T=2.)  # type: ignore[call-arg]

def from_the_top(v: Tensor, z: Tensor) -> None:
    assert_type(vd.vsd_loss(v, z), Tensor)
    vd.vsd_loss(v)  # type: ignore[call-arg]
    vd.vsd_los(v, z)  # type: ignore[attr-defined]
    assert_type(vd.load_dataset("synthetic"), ReIDDataset)

def bottlenecks() -> None:
    InformationBottleneck(64), InformationBottleneck(64, 32, hidden=(16,)), VariationalBottleneck(64, 32, [16, 8], normalization="layer")
    InformationBottleneck("64")  # type: ignore[arg-type]
    InformationBottleneck(64, hidden=16)  # type: ignore[arg-type]
    VariationalBottleneck(64, 32.)  # type: ignore[arg-type]

def encodes(bottleneck: VariationalBottleneck, v: Tensor) -> None:
    assert_type(bottleneck.encode(v), tuple[Tensor, Tensor])
    assert_type(bottleneck.forward(v), tuple[Tensor, Tensor])
    bottleneck.forward(v, generator=0)  # type: ignore[arg-type]

def distillation(v: Tensor, z: Tensor) -> None:
    for loss in (vsd_loss, vcd_loss): assert_type(loss(v, z, temperature=2., reduction="sum", detach=False), Tensor)
    assert_type(vml_loss(v, z), Tensor)
    assert_type(released_loss(v, z), Tensor)
    vsd_loss(v.numpy(), z)  # type: ignore[arg-type]
    vcd_loss(v, z, temperature="2")  # type: ignore[arg-type]
    vml_loss(v, z, detach=False)  # type: ignore[call-arg]
    released_loss(v)  # type: ignore[call-arg]
    distil = VariationalDistillation(vsd=2, vml=0, detach=True)
    assert_type(distil.forward([(v, z)], ((v, z), (v, z))), dict[str, Tensor])
    distil.forward(3)  # type: ignore[arg-type]
    VariationalDistillation(vib=1.)  # type: ignore[call-arg]

def bounds(scores: Tensor, negatives: Tensor) -> None:
    for contrastive in (cpc, ml_cpc): assert_type(contrastive(scores, alpha=[.1, 1.]), Tensor)
    for bound in (nwj, dv, js): assert_type(bound(scores, negatives), Tensor)
    assert_type(smile(scores, clip=1.), Tensor)
    assert_type(tuba(scores, negatives, log_baseline=.5), Tensor)
    assert_type(alpha_floor(128, 128), float)
    assert_type(ceiling(128, .1), float)
    cpc(scores, .1)  # type: ignore[arg-type]
    ml_cpc(scores, alpha="low")  # type: ignore[arg-type]
    nwj(scores, alpha=.1)  # type: ignore[call-arg]
    smile(scores, clip=None)  # type: ignore[arg-type]
    alpha_floor(128)  # type: ignore[call-arg]

def estimation(frame: pd.DataFrame) -> None:
    task = correlated_gaussian(2., dim=5, cubic=True)
    assert_type(task, Task)
    assert_type(task.mutual_information, float)
    assert_type(task.sample(100, seed=1), tuple[Tensor, Tensor])
    for column in (frame[["a"]], frame.b, frame.b.to_numpy(), task.sample(9)[0], [1., 2.]): assert_type(estimate_mi(frame.a, column, "cpc", "separable", seeds=3), MIEstimate)
    assert_type(estimate_mi(frame.a, frame.b).value, float)
    correlated_gaussian("2")  # type: ignore[arg-type]
    estimate_mi(frame.a)  # type: ignore[call-arg]
    estimate_mi(frame.a, frame.b, seeds=.5)  # type: ignore[arg-type]
    estimate_mi(frame.a, None)  # type: ignore[arg-type]

def evaluation(features: Tensor, distances: NDArray[np.float32], ids: NDArray[np.int64]) -> None:
    scores = retrieval_scores(distances, ids, ["a", "b"], exclude=distances > 1, cmc="identity")
    assert_type(scores, RetrievalScores)
    assert_type(scores.mean_ap, float)
    assert_type(scores.valid_queries, int)
    assert_type(rerank(features, features, k1=10, lambda_value=.5), Tensor)
    side = features, ids, ids
    assert_type(sysu_scores(*side, *side, {}, mode="indoor", shots=10), ProtocolScores)
    assert_type(llcm_scores(*side, *side), dict[str, ProtocolScores])
    assert_type(regdb_scores([(features, ids, features, ids)]), dict[str, ProtocolScores])
    retrieval_scores("distances", ids, ids)  # type: ignore[arg-type]
    retrieval_scores(distances, ids, ids, distances > 1)  # type: ignore[call-arg]
    rerank(features)  # type: ignore[call-arg]
    rerank(features, [[1.]])  # type: ignore[arg-type]
    sysu_scores(*side, *side, {}, mode=1)  # type: ignore[arg-type]
    regdb_scores(3)  # type: ignore[arg-type]
    llcm_scores(*side, *side, draws=3)  # type: ignore[call-arg]

def training() -> None:
    assert_type(load_dataset("synthetic", image_size=(64, 32), seed=1, images_per_camera=2), ReIDDataset)
    load_dataset(3)  # type: ignore[arg-type]
    load_dataset("synthetic", image_size="64x32")  # type: ignore[arg-type]
    config = TrainConfig(dataset="synthetic", epochs=2, hidden=(32,))
    assert_type(Trainer(config, "run").fit(), pd.DataFrame)
    assert_type(Trainer.resume("run", progress=True), Trainer)
    TrainConfig(epoch=2)  # type: ignore[call-arg]
    TrainConfig(epochs="2")  # type: ignore[arg-type]
    Trainer("synthetic")  # type: ignore[arg-type]
    Trainer.resume(config)  # type: ignore[arg-type]

assert_type(__version__, str)
