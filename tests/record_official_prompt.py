"""Record prompt learners as the official code saves them (which needs torch).

python tests/record_official_prompt.py tests/data/official_prompts

Dassl saves the state of a prompt learner, its optimizer and its scheduler. The state of its
warm-up scheduler has the scheduler that follows, an object that refers to the optimizer's object.
"""

import sys
from collections import OrderedDict
from pathlib import Path

CLASSES, PLACES, M, WIDTH, EMBEDDING = 5, 9, 4, 32, 24


def ramp(torch, *shape):
    """Numbers that a reader can know."""
    count = torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float32).reshape(shape) / count - 0.25


def coop(torch):
    """CoOp from a phrase: the context is a view into the phrase's embeddings; buffers as well."""

    class PromptLearner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            phrase = ramp(torch, 1, PLACES, WIDTH)
            self.ctx = torch.nn.Parameter(phrase[0, 1 : 1 + M, :])
            embedding = ramp(torch, CLASSES, PLACES, WIDTH)
            self.register_buffer("token_prefix", embedding[:, :1, :])
            self.register_buffer("token_suffix", embedding[:, 1 + M :, :])

    return PromptLearner()


def coop_class_specific(torch):
    """CoOp with a context per class, in the official precision."""

    class PromptLearner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.ctx = torch.nn.Parameter(ramp(torch, CLASSES, M, WIDTH).half())

    return PromptLearner()


def cocoop(torch):
    """CoCoOp in the official precision."""

    class PromptLearner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.ctx = torch.nn.Parameter(ramp(torch, M, WIDTH))
            layers = {
                "linear1": torch.nn.Linear(EMBEDDING, EMBEDDING // 16),
                "relu": torch.nn.ReLU(inplace=True),
                "linear2": torch.nn.Linear(EMBEDDING // 16, WIDTH),
            }
            self.meta_net = torch.nn.Sequential(OrderedDict(layers))
            for parameter in self.meta_net.parameters():
                parameter.data = ramp(torch, *parameter.shape)

    return PromptLearner().half()


def other_context(torch, context):
    """A prompt learner as no official code makes it."""

    class PromptLearner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.ctx = torch.nn.Parameter(context)

    return PromptLearner()


def train_an_epoch(torch, model):
    """An optimizer and a warm-up scheduler after a step, with the model's numbers as before."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9, weight_decay=5e-4)
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50.0)

    class ConstantWarmupScheduler(torch.optim.lr_scheduler.LRScheduler):
        def __init__(self):
            self.successor, self.warmup_epoch, self.cons_lr = successor, 1, 1e-5
            super().__init__(optimizer)

        def get_lr(self):
            return [self.cons_lr for _ in self.base_lrs]

    scheduler = ConstantWarmupScheduler()
    sum(parameter.float().sum() for parameter in model.parameters()).backward()
    optimizer.step()
    scheduler.step()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(before[name])
    return optimizer, scheduler


def main(folder: Path) -> None:
    """Record all of them."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    for make in (coop, coop_class_specific, cocoop):
        model = make(torch)
        optimizer, scheduler = train_an_epoch(torch, model)
        checkpoint = {
            "state_dict": model.state_dict(),
            "epoch": 50,
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "val_result": None,
        }
        torch.save(checkpoint, folder / f"{make.__name__}.pth.tar-50")
    for name, context in (
        ("transposed", ramp(torch, WIDTH, M).t()),
        ("bfloat16", ramp(torch, M, WIDTH).bfloat16()),
    ):
        model = other_context(torch, context)
        torch.save({"state_dict": model.state_dict(), "epoch": 50}, folder / f"{name}.pth.tar-50")
    torch.save(
        {"state_dict": coop_class_specific(torch).state_dict(), "epoch": 50},
        folder / "before_1_6.pth.tar-50",
        _use_new_zipfile_serialization=False,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
