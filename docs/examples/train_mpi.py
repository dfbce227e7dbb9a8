import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import sparsecomm

torch.manual_seed(0)
x = torch.randn(3200, 64)
data = TensorDataset(x, x[:, :10].argmax(1))
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
config = sparsecomm.Config(keep=0.01)
optimizer = sparsecomm.DistributedOptimizer(model, "adam", lr=3e-3, config=config)
rank, size = optimizer.synchronizer.rank, optimizer.synchronizer.size
sampler = DistributedSampler(data, num_replicas=size, rank=rank)
loader = DataLoader(data, batch_size=32, sampler=sampler)

for epoch in range(3):
    sampler.set_epoch(epoch)
    for inputs, labels in loader:
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if rank == 0:
        print(f"epoch {epoch + 1} loss {loss.item():.3f}")
