"""The ladder's network in PyTorch, plainly, for scripts/benchmark.py.

Variants: "channels-last" or "default", the memory layout; with "-compile", through `torch.compile`; with
"-reduce-overhead", in the mode of that name, which replays CUDA graphs; with "-bfloat16", under autocast.
"""

# ruff: noqa: D102, D107 -- what the methods do is said once, in workload.Contender

import numpy as np
import torch
import torch.nn.functional as F
import workload
from torch import nn


class CNN(nn.Module):
    """Three blocks of [convolution, ReLU, BatchNorm] twice and max-pooling, a hidden layer, a linear head."""

    def __init__(self):
        super().__init__()
        channels = 3
        for block, width in enumerate(workload.WIDTHS, 1):
            for conv in (1, 2):
                self.add_module(f"conv{block}_{conv}", nn.Conv2d(channels, width, 3, padding=1))
                self.add_module(f"conv{block}_{conv}_bn", self._batch_norm(nn.BatchNorm2d, width))
                channels = width
        side = workload.SIDE // 2 ** len(workload.WIDTHS)
        self.dense1 = nn.Linear(side * side * channels, workload.HIDDEN)
        self.dense1_bn = self._batch_norm(nn.BatchNorm1d, workload.HIDDEN)
        self.head = nn.Linear(workload.HIDDEN, workload.CLASSES)

    def _batch_norm(self, kind, width):
        return kind(width, eps=workload.BN_EPSILON, momentum=1 - workload.BN_MOMENTUM)

    def forward(self, x):
        for block in range(1, len(workload.WIDTHS) + 1):
            for name in (f"conv{block}_1", f"conv{block}_2"):
                x = self.get_submodule(f"{name}_bn")(F.relu(self.get_submodule(name)(x)))
            x = F.max_pool2d(x, 2)
        x = self.dense1_bn(F.relu(self.dense1(x.flatten(1))))
        return self.head(x)


class Torch:
    """See `workload.Contender`."""

    def __init__(self, variant: str, batch: int, steps: int, device: str):
        options = variant.split("-")
        layout = torch.channels_last if "channels" in options else torch.contiguous_format
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        self._device, self._batch, self._steps = torch.device(device), batch, steps
        self._bfloat16 = "bfloat16" in options
        self.model = CNN().to(self._device, memory_format=layout)
        # Outputs of a replayed graph are overwritten by the next step, which must therefore be announced.
        self._announce = torch.compiler.cudagraph_mark_step_begin if "overhead" in options else lambda: None
        mode = "reduce-overhead" if "overhead" in options else "default"
        self._forward = torch.compile(self.model, mode=mode) if "compile" in options else self.model
        self._optimizer = torch.optim.SGD(
            self.model.parameters(), workload.LEARNING_RATE, workload.MOMENTUM, fused=device == "cuda"
        )
        images, labels = workload.data(batch * steps)
        images = torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float32) / 255
        self._images = images.to(self._device).contiguous(memory_format=layout)
        self._labels = torch.tensor(labels, dtype=torch.int64, device=self._device)

    def load(self, weights: dict[str, np.ndarray]) -> None:
        names = {"kernel": "weight", "scale": "weight", "bias": "bias"}
        with torch.no_grad():
            for name, value in weights.items():
                layer, _, leaf = name.rpartition("/")
                parameter = self.model.get_submodule(layer).get_parameter(names[leaf])
                parameter.copy_(torch.from_numpy(_transposed(layer, value).copy()))

    def count(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def losses(self, rows: np.ndarray) -> list[float]:
        self.model.train()
        picked = [torch.from_numpy(row).to(self._device) for row in rows]
        return [float(self._step(self._images[index], self._labels[index])[0]) for index in picked]

    def test_loss(self) -> float:
        self.model.eval()
        with torch.inference_mode():
            return float(F.cross_entropy(self.model(self._images), self._labels))

    def train(self) -> None:
        self.model.train()
        loss, right = (torch.zeros((), device=self._device) for _ in range(2))
        for images, labels in self._batches():
            values = self._step(images, labels)
            loss, right = loss + values[0], right + values[1]
        loss.item(), right.item()

    def infer(self) -> None:
        self.model.eval()
        with torch.inference_mode(), self._autocast():
            for images, _ in self._batches():
                self._announce()
                logits = self._forward(images)
        logits.sum().item()

    def versions(self) -> dict[str, str]:
        where = torch.cuda.get_device_name() if self._device.type == "cuda" else f"{torch.get_num_threads()} threads"
        return {"torch": torch.__version__, "on": where}

    def device_memory(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else None

    def _batches(self):
        return zip(self._images.split(self._batch), self._labels.split(self._batch))

    def _autocast(self):
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16)

    def _step(self, images, labels):
        self._announce()
        self._optimizer.zero_grad()
        with self._autocast():
            logits = self._forward(images)
            loss = F.cross_entropy(logits, labels)
        loss.backward()
        self._optimizer.step()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()


def _transposed(layer: str, value: np.ndarray) -> np.ndarray:
    """From our axes to PyTorch's: ours end in (in, out), and what is flattened has its channels last."""
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    if layer == "dense1" and value.ndim == 2:
        side = workload.SIDE // 2 ** len(workload.WIDTHS)
        return value.reshape(side, side, -1, value.shape[1]).transpose(3, 2, 0, 1).reshape(value.shape[1], -1)
    return value.T


if __name__ == "__main__":
    workload.serve(Torch)
