"""Your own model and data as an automc task: `automc search examples/my_task.py:task --budget "macs<=50%"`."""

import torch
from sklearn.datasets import load_wine
from sklearn.preprocessing import StandardScaler
from torch import nn

import automc


def network() -> nn.Module:
    """The model without its weights; automc.load calls this to bring a saved result back."""
    return nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))


def task() -> automc.Task:
    """A small network for the wine data, trained here; bring your trained model instead."""
    torch.manual_seed(0)
    features, labels = load_wine(return_X_y=True)
    x = torch.tensor(StandardScaler().fit_transform(features), dtype=torch.float32)
    y = torch.tensor(labels)
    train, validation, test = torch.randperm(len(y)).split([78, 50, 50])
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[train]), y[train]).backward()
        optimizer.step()
    return automc.Task(
        model.eval(),
        calibration=[x[train]],  # batches of inputs; no labels needed
        validation=[(x[validation], y[validation])],  # the search scores here
        test=[(x[test], y[test])],  # the report is made here, once
        factory=network,
    )
