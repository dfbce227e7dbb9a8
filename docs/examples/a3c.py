import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F

import hogwild.torch


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.actor, self.critic = nn.Linear(4, 32), nn.Linear(32, 2), nn.Linear(32, 1)

    def forward(self, state):
        hidden = torch.tanh(self.body(state))
        return self.actor(hidden), self.critic(hidden)


def train(rank, shared, optimizer):
    torch.manual_seed(rank)
    torch.set_num_threads(1)
    model = ActorCritic()
    for _ in range(300):
        model.load_state_dict(shared.state_dict())
        state = torch.randn(20, 4)
        logits, value = model(state)
        action = torch.distributions.Categorical(logits=logits).sample()
        reward = (action == (state[:, 0] > 0)).float()  # in place of an environment's
        advantage = reward - value.squeeze(1)
        policy = F.cross_entropy(logits, action, reduction="none") * advantage.detach()
        loss = policy.mean() + 0.5 * advantage.square().mean()
        model.zero_grad()
        loss.backward()
        for p, s in zip(model.parameters(), shared.parameters()):
            s._grad = p.grad
        optimizer.step()


if __name__ == "__main__":
    mp.set_start_method("fork")
    torch.manual_seed(0)
    shared = ActorCritic()
    shared.share_memory()
    optimizer = hogwild.torch.SharedAdam(shared.parameters(), lr=0.003)  # was my_optim.SharedAdam
    optimizer.share_memory()
    processes = [mp.Process(target=train, args=(rank, shared, optimizer)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    state = torch.randn(1000, 4)
    right = (shared(state)[0].argmax(1) == (state[:, 0] > 0)).float().mean()
    print("more than 90% right:", bool(right > 0.9))
