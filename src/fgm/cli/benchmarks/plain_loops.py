"""A distillation's cycle as plain loops, on the module's own networks and optimizers, with noise from one generator.

    bare     the forward and backward passes of the cycle and both optimizers' steps, and nothing else: no clip, no
             guard, no average, no schedule, no log. What no framework can be faster than
    naive    as a first implementation has it: a fresh sample for each turn, and weight gradients of teacher and online
             network computed in the generator's turn, where nothing steps them

Both move the networks as the suite's own cycle does, so that all three meet the same memory and the same caches.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fgm.flow import losses
from fgm.training.distillation import Distillation
from fgm.training.two_stage import Branch


class PlainLoops:
    """
    Args:
        module: a distillation without discriminator, real images and further steps.
        optimizers: of its generator and its online network, bare.
        batch_size: samples a cycle.
    """

    def __init__(self, module: Distillation, optimizers: list[Optimizer], batch_size: int) -> None:
        self.module, self.optimizers, self.batch_size = module, optimizers, batch_size
        self.noise = torch.Generator(module.device).manual_seed(0)
        self.teacher_velocity, self.online_velocity = module.velocities()

    def bare(self) -> None:
        x_0, condition = self.sample()
        self.online_turns(x_0, condition)
        with frozen(self.module.online):
            self.generator_turn(x_0, condition)

    def naive(self) -> None:
        self.online_turns(*self.sample())
        self.module.teacher.requires_grad_(True)
        self.generator_turn(*self.sample())
        self.module.teacher.requires_grad_(False)
        for net in (self.module.teacher, self.module.online):
            net.zero_grad()

    def sample(self) -> tuple[Tensor, Tensor | None]:
        module, data = self.module, self.module.setting.data
        shape = (self.batch_size, *data.shape)
        z = torch.randn(shape, generator=self.noise, dtype=module.weight_dtype, device=module.device)
        condition = data.conditions(self.batch_size, self.noise)
        return module.generator(z, condition), condition

    def online_turns(self, x_0: Tensor, condition: Tensor | None) -> None:
        module = self.module
        for _ in range(module.online_turns):
            x_t, c, t = module.setting.noisy(x_0.detach(), module.online_time, self.noise)
            with self.online_velocity.active():
                v = self.online_velocity(x_t, t, condition).to(x_t.dtype)
                self.step(1, losses.flow_matching(v, c).mean())

    def generator_turn(self, x_0: Tensor, condition: Tensor | None) -> None:
        module = self.module
        x_t, c, t = module.setting.noisy(x_0, module.setting.time, self.noise)
        teacher, online = (Branch(net, t, condition) for net in (self.teacher_velocity, self.online_velocity))
        root = module.objective(x_0, x_t, c, teacher, online).root
        with module.generator.active():
            self.step(0, root)

    def step(self, index: int, loss: Tensor) -> None:
        loss.backward()
        self.optimizers[index].step()
        self.optimizers[index].zero_grad()


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """Weights without gradients; those that had none before have none after."""
    trained = [p for p in net.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    yield
    for p in trained:
        p.requires_grad_(True)
