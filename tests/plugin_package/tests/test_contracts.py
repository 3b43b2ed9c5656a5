"""The contracts that ship with the harness, on our plugins."""

from harness.testing.datasets import DatasetContract
from harness.testing.methods import MethodContract
from harness.testing.metrics import MetricContract
from harness.testing.protocols import ProtocolContract


class TestReliabilityVote(MethodContract):
    method = "reliability_vote"


class TestWine(DatasetContract):
    dataset = "wine"


class TestSingle(ProtocolContract):
    protocol = "single_0.5"
    modalities = ("chemistry", "phenols", "colour")
    incomplete = 0.5
    golden = "5d933314da5b8a7864469061763aabed518c06272756996eb57f8ed4f5e1c0bf"


class TestWorstClassRecall(MetricContract):
    metric = "worst_class_recall"
