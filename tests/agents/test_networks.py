"""The written-out gradients of actor and critic, held against autograd."""

import copy

import pytest
import torch
from torch import Tensor, nn

from automc.agents.networks import LOGIT_PENALTY, Actor, Critic, initialise_, sizes

STATE, ACTION, HIDDEN, BATCH = 5, 3, 16, 32


def drawn(shapes: tuple[tuple[int, ...], ...], scale: float = 1.0) -> Tensor:
    flat = torch.empty(sum(sizes(shapes)))
    initialise_(flat, shapes, torch.Generator().manual_seed(0))
    return flat.mul_(scale)


def critic_of(flat: Tensor) -> Critic:
    return Critic(flat, STATE, ACTION, HIDDEN)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(BATCH, n, generator=generator) for n in (STATE, ACTION, 1))  # type: ignore[return-value]


def modules_of(critic: Critic, actor: Actor | None = None) -> list[nn.Linear]:
    """Plain layers with the same weights."""
    pairs = [(critic.ws, critic.bs), (critic.wa, critic.ba), (critic.w2, critic.b2), (critic.w3, critic.b3)]
    if actor is not None:
        pairs = [(actor.w1, actor.b1), (actor.w2, actor.b2), (actor.w3, actor.b3)]
    layers = []
    for weight, bias in pairs:
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
        layers.append(layer)
    return layers


def value(layers: list[nn.Linear], state: Tensor, action: Tensor) -> Tensor:
    of_state, of_action, second, last = layers
    return last(second((of_state(state) + of_action(action)).relu()).relu())


def flattened(layers: list[nn.Linear]) -> Tensor:
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def test_the_critic_is_the_network_it_says_and_its_gradient_is_autograds() -> None:
    flat = drawn(Critic.shapes(STATE, ACTION, HIDDEN), 3.0)
    critic, slope = critic_of(flat), torch.full_like(flat, 7.0)
    state, action, target = batch()
    layers = modules_of(critic)
    found = value(layers, state, action)
    assert torch.allclose(critic(state, action), found, atol=1e-6)
    nn.functional.mse_loss(found, target).backward()
    critic.gradient(critic_of(slope), state, action, target)
    assert torch.allclose(slope, flattened(layers), atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 6.0])  # hidden layers with norms below and above one
@pytest.mark.parametrize("steady", [False, True])
@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_the_actors_gradient_is_autograds(weight: float, steady: bool, scale: float) -> None:
    critic = critic_of(drawn(Critic.shapes(STATE, ACTION, HIDDEN), 3.0))
    flat = drawn(Actor.shapes(STATE, ACTION, HIDDEN), scale)
    flat[-ACTION * (HIDDEN + 1) :] *= 100.0  # logits far from zero
    actor = Actor(flat, STATE, ACTION, HIDDEN, steady=steady)
    state, given, _ = batch()
    first, second, last = layers = modules_of(critic, actor)
    hidden = second(first(state).relu()).relu()
    norm = hidden.norm(dim=1, keepdim=True)
    assert not steady or bool((norm > 1).any()) == (scale > 1)
    logits = last(hidden / norm.clamp_min(1.0) if steady else hidden)
    assert torch.allclose(actor(state), logits.sigmoid(), atol=1e-6)
    penalty = LOGIT_PENALTY * logits.square().mean() if steady else 0.0
    action, judge = logits.sigmoid(), modules_of(critic)
    better = value(judge, state, given) > value(judge, state, action)
    assert bool(better.any()) and not bool(better.all())
    copied = weight * ((action - given).square() * better).mean()
    (penalty + copied - value(judge, state, action).mean()).backward()
    slope = torch.full_like(flat, 7.0)
    before = copy.deepcopy(flat)
    into = Actor(slope, STATE, ACTION, HIDDEN, steady=steady)
    actor.gradient(into, state, critic, given if weight else None, weight)
    assert torch.allclose(slope, flattened(layers), atol=1e-6, rtol=1e-4)
    assert torch.equal(flat, before)


def test_networks_begin_as_pytorchs_layers_do_with_a_small_last_one() -> None:
    shapes = Actor.shapes(11, 1, 300)
    actor = Actor(drawn(shapes), 11, 1, 300, steady=False)
    for part, bound in ((actor.w1, 11**-0.5), (actor.b1, 11**-0.5), (actor.w2, 300**-0.5), (actor.b2, 300**-0.5)):
        assert 0.9 * bound < part.abs().max() <= bound
    assert actor.w3.abs().max() <= 3e-3 and actor.b3.abs().max() <= 3e-3
