import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import sparsecomm
from sparsecomm.hook import GradientDropping, gradient_dropping

dist.init_process_group("gloo")
torch.manual_seed(0)
x = torch.randn(3200, 64)
data = TensorDataset(x, x[:, :10].argmax(1))
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
ddp = DistributedDataParallel(model)
state = GradientDropping(model.named_parameters(), sparsecomm.Config(keep=0.01))
ddp.register_comm_hook(state, gradient_dropping)
optimizer = sparsecomm.CatchUpOptimizer(model, "adam", lr=3e-3)
sampler = DistributedSampler(data)
loader = DataLoader(data, batch_size=32, sampler=sampler)

for epoch in range(3):
    sampler.set_epoch(epoch)
    for inputs, labels in loader:
        loss = nn.functional.cross_entropy(ddp(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if dist.get_rank() == 0:
        print(f"epoch {epoch + 1} loss {loss.item():.3f}")
dist.destroy_process_group()
