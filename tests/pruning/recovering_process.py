"""A recovery that can be killed where another process calls it.

Every step waits a little, so that a signal finds it on its way.
"""

import time
from pathlib import Path

from tiny_language_models import random_model, random_windows

from lmscout.pruning.families import family_of
from lmscout.pruning.plan import Plan
from lmscout.pruning.recovery.elastic import ElasticAdapter
from lmscout.pruning.recovery.training import RecoverySettings, likelihood_loss, train

SETTINGS = RecoverySettings("lora", rank=2, batch_tokens=32, steps=24, save_seconds=0.05)
PLANS = Plan((2, 2, 2), (48, 48, 48)), Plan((1, 0, 2), (30, 48, 0))


def example(folder, update=None, pause=0.0):
    """Train two plans of a tiny model in turn; gives the weights and what they depend on.

    The second plan leaves some adapters without a gradient.
    """
    model = random_model("llama").requires_grad_(False)
    adapter = ElasticAdapter(model, family_of(model.config), SETTINGS.rank, SETTINGS.seed)

    def loss_of(step, tokens):
        time.sleep(pause)
        hidden = adapter.hidden(PLANS[step % 2], tokens)
        return likelihood_loss(adapter.head, hidden, tokens, 64)

    identity = {"model": "tiny"}
    train(
        adapter.weights,
        loss_of,
        random_windows(),
        SETTINGS,
        Path(folder) / "x.safetensors",
        identity,
        device=model.device,
        progress=None if update is None else lambda done, _: update(done),
    )
    return adapter.weights, identity
