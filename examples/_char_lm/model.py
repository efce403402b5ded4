"""The language model, and the one line in which its two versions differ."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastrnn

from .data import Corpus

CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
LIBRARIES = {"torch": nn, "fastrnn": fastrnn}

State = Tensor | tuple[Tensor, Tensor]


class OneHot(nn.Module):
    """Characters as vectors with a single 1, in the place of an embedding."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, characters: Tensor) -> Tensor:
        """Characters (T, B) -> (T, B, V)."""
        return nn.functional.one_hot(characters, self.vocabulary).float()


class CharLM(nn.Module):
    """Embedding, recurrent layers, projection to the characters. The initial weights follow from torch's seed.

    Without an embedding (size 0) the layers read one-hot vectors.
    """

    def __init__(
        self, impl: str, cell: str, vocabulary: int, embedding: int, hidden: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        library = LIBRARIES[impl]  # the swap: nn.LSTM(...) becomes fastrnn.LSTM(...), nothing else changes
        recurrent = getattr(library, CELLS[cell])
        self.embed = nn.Embedding(vocabulary, embedding) if embedding else OneHot(vocabulary)
        self.drop = nn.Dropout(dropout)
        # torch warns about dropout between layers where there is only one.
        self.rnn = recurrent(embedding or vocabulary, hidden, num_layers=layers, dropout=dropout if layers > 1 else 0.0)
        self.decode = nn.Linear(hidden, vocabulary)

    def forward(self, characters: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Characters (T, B) and the state before them -> logits (T, B, V) of what comes next, and the state after."""
        output, state = self.rnn(self.drop(self.embed(characters)), state)
        return self.decode(self.drop(output)), state


def detach(state: State) -> State:
    """The same state, cut off from the graph that made it: gradients stop here, the memory goes on."""
    return tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()


@torch.inference_mode()
def sample(model: CharLM, corpus: Corpus, prime: str, length: int, temperature: float, seed: int) -> str:
    """Continue `prime` by `length` characters, each drawn from the model's distribution.

    Temperature divides the logits: below 1 the likely characters become likelier, at 0 the likeliest is always taken.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    drawn: list[Tensor] = []
    logits, state = model(corpus.encode(prime).unsqueeze(1).to(device))
    for _ in range(length):
        last = logits[-1, 0].double().cpu()
        if temperature == 0:
            character = last.argmax().view(1)
        else:
            character = torch.multinomial(torch.softmax(last / temperature, 0), 1, generator=generator)
        drawn.append(character)
        logits, state = model(character.view(1, 1).to(device), state)
    model.train(was_training)
    return corpus.decode(torch.cat(drawn)) if drawn else ""
