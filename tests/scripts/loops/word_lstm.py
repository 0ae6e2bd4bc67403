"""A word-level language model on nn.LSTM: time first, state carried on, SGD, rates cut by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.scripts.loop import Run, Trained, own, own_file, replicated, text, weights

VOCABULARY, SIZE, LENGTH, BATCH = 32, 16, 6, 8
State = tuple[Tensor, Tensor]


class RNNModel(nn.Module):
    """Embedding, dropout, two layers of LSTM, readout; inputs are [time, batch]."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.encoder = nn.Embedding(VOCABULARY, SIZE)
        self.rnn = nn.LSTM(SIZE, SIZE, 2, dropout=0.2)
        self.decoder = nn.Linear(SIZE, VOCABULARY)

    def forward(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        out, state = self.rnn(self.drop(self.encoder(words)), state)
        return self.decoder(self.drop(out)), state


def no_state(batch: int) -> State:
    """The state before the first word."""
    return torch.zeros(2, batch, SIZE), torch.zeros(2, batch, SIZE)


def outputs(model: nn.Module, words: Tensor) -> Tensor:
    """The logits with the batch first, from words with the batch first."""
    logits: Tensor = model(words.T, no_state(len(words)))[0]
    return logits.transpose(0, 1)


def train(run: Run) -> Trained:
    """The loop, as a script's main function would be."""
    torch.manual_seed(1111)
    model = RNNModel()
    called = replicated(model)
    torch.manual_seed(own(1111))
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    flerm = None
    if run.record:
        flerm = run.attach(
            called, optimizer,
            probe=[text(BATCH, LENGTH, VOCABULARY, own(seed)) for seed in range(4)],
            output=outputs, **run.keywords,
        )  # fmt: skip
    begin, state = 0, no_state(BATCH)
    if run.resume:
        saved = torch.load(own_file(run.folder, "model.pt"), weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        begin, state = saved["step"], saved["state"]
        torch.set_rng_state(saved["random"])
        if flerm is not None:
            flerm.load_state_dict(saved["flerm"])
    corpus = text(BATCH, 10 * LENGTH, VOCABULARY, own(5)).T
    losses = []
    for step in range(begin, run.steps):
        if step == 4:
            optimizer.param_groups[0]["lr"] /= 4
        words = corpus[step * LENGTH : (step + 1) * LENGTH + 1]
        state = (state[0].detach(), state[1].detach())
        model.zero_grad()
        logits, state = called(words[:-1], state)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), words[1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        losses.append(loss.item())
    if run.stop:
        torch.save(
            {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                "random": torch.get_rng_state(), "step": run.steps,
                "state": (state[0].detach(), state[1].detach()),
                "flerm": flerm.state_dict() if flerm is not None else None,
            },
            own_file(run.folder, "model.pt"),
        )  # fmt: skip
    if flerm is not None:
        flerm.close("interrupted" if run.stop else "completed")
    return Trained(losses, weights(model), flerm)
