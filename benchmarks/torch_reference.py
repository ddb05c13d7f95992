"""The official computation in plain PyTorch, as coop_protocol sections 3 to 9 state it.

All 77 tokens of every class pass through the text tower at every step. Matrices are in the chosen
dtype, normalisations, embeddings and the logit scale in float32; weights come as nested dicts of
NumPy arrays from coop_jax's CLIP, so that losses and gradients can be compared.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

TEST_BATCH = 100
RATE, MOMENTUM, DECAY = 1e-5, 0.9, 5e-4
"""The optimizer's settings in the epoch of warm-up."""

THIRDS = ("query", "key", "value")
"""The order in which an attention's inner products are joined."""


class LayerNorm(nn.LayerNorm):
    """Computed in float32 and cast back."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise over the last axis."""
        return super().forward(input.float()).to(input.dtype)


class QuickGELU(nn.Module):
    """OpenAI's approximation, x * sigmoid(1.702 x)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of any shape."""
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A residual attention block on `[length, batch, width]`."""

    def __init__(self, width: int, heads: int, mlp_width: int, mask: torch.Tensor | None):
        super().__init__()
        self.ln_1, self.ln_2 = LayerNorm(width), LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        self.c_fc, self.c_proj = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)
        self.mlp = nn.Sequential(self.c_fc, QuickGELU(), self.c_proj)
        self.mask = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        y = self.ln_1(x)
        mask = None if self.mask is None else self.mask.to(x.dtype)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


def transformer(
    weights: Mapping[str, Any], heads: int, length: int | None, dtype: torch.dtype
) -> nn.Sequential:
    """A stack of blocks with the given weights; causal if a length is given."""
    layers, width, mlp_width = weights["mlp_input"]["kernel"].shape
    mask = None
    if length is not None:
        mask = torch.full((length, length), -torch.inf).triu(1)
    blocks = [Block(width, heads, mlp_width, mask) for _ in range(layers)]
    for layer, block in enumerate(blocks):
        of_layer = _map(weights, lambda array, layer=layer: array[layer])
        fill_norm(block.ln_1, of_layer["attention_norm"])
        fill_norm(block.ln_2, of_layer["mlp_norm"])
        joint = of_layer["query_key_value"]
        fill(block.attn.in_proj_weight, joint["kernel"].T, dtype)
        fill(block.attn.in_proj_bias, joint["bias"], dtype)
        fill_linear(block.attn.out_proj, of_layer["attention_output"], dtype)
        fill_linear(block.c_fc, of_layer["mlp_input"], dtype)
        fill_linear(block.c_proj, of_layer["mlp_output"], dtype)
    return nn.Sequential(*blocks)


def _map(tree: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    return {
        key: _map(value, change) if isinstance(value, Mapping) else change(value)
        for key, value in tree.items()
    }


def tensor(array: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A copy on torch's current device."""
    return torch.tensor(np.asarray(array, np.float32), dtype=dtype)


def fill(parameter: Any, array: np.ndarray, dtype: torch.dtype = torch.float32) -> None:
    """Set a parameter's values and dtype."""
    assert parameter.shape == array.shape, (parameter.shape, array.shape)
    parameter.data = tensor(array, dtype)


def fill_norm(norm: LayerNorm, weights: Mapping[str, Any]) -> None:
    """Set a normalisation's scale and bias, float32."""
    fill(norm.weight, weights["norm"]["scale"])
    fill(norm.bias, weights["norm"]["bias"])


def fill_linear(linear: nn.Linear, weights: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Set a linear layer's matrix and bias."""
    fill(linear.weight, weights["kernel"].T, dtype)
    fill(linear.bias, weights["bias"], dtype)


class TextEncoder(nn.Module):
    """Prompts `[classes, 77, width]` and their token ids to features `[classes, embedding]`."""

    def __init__(self, weights: Mapping[str, Any], heads: int, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        self.positional = nn.Parameter(tensor(weights["positional_embedding"]))
        self.transformer = transformer(weights["blocks"], heads, len(self.positional), dtype)
        self.ln_final = LayerNorm(self.positional.shape[1])
        fill_norm(self.ln_final, weights["final_norm"])
        self.projection = nn.Parameter(tensor(weights["projection"], dtype))

    def forward(self, prompts: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The feature is read at the end token, the largest id."""
        x = prompts + self.positional.to(self.dtype)
        x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        x = self.ln_final(x).to(self.dtype)
        return x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ self.projection


class ImageEncoder(nn.Module):
    """Normalised images `[batch, 3, size, size]` to features `[batch, embedding]`."""

    def __init__(self, weights: Mapping[str, Any], heads: int, dtype: torch.dtype):
        super().__init__()
        kernel = weights["patch_embedding"]["kernel"]
        patch, width = round((len(kernel) / 3) ** 0.5), kernel.shape[1]
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        fill(self.conv1.weight, kernel.reshape(patch, patch, 3, width).transpose(3, 2, 0, 1), dtype)
        self.first = nn.Parameter(tensor(weights["class_embedding"]))
        self.positional = nn.Parameter(tensor(weights["positional_embedding"]))
        self.ln_pre, self.ln_post = LayerNorm(width), LayerNorm(width)
        fill_norm(self.ln_pre, weights["initial_norm"])
        fill_norm(self.ln_post, weights["final_norm"])
        self.transformer = transformer(weights["blocks"], heads, None, dtype)
        self.projection = nn.Parameter(tensor(weights["projection"], dtype))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Unnormalised features."""
        x = self.conv1(images).flatten(2).permute(0, 2, 1)
        first = self.first.to(x.dtype).expand(len(x), 1, -1)
        x = self.ln_pre(torch.cat([first, x], dim=1) + self.positional.to(x.dtype))
        x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        return self.ln_post(x[:, 0]) @ self.projection


class PromptLearner(nn.Module):
    """The context, CoCoOp's meta-net, and the fixed embeddings around the context."""

    def __init__(
        self, learned: Mapping[str, Any], embedded: torch.Tensor, n_ctx: int, dtype: torch.dtype
    ):
        super().__init__()
        self.ctx = nn.Parameter(tensor(learned["context"], dtype))
        self.meta_net = None
        if "meta_net" in learned:
            net = learned["meta_net"]
            embedding, hidden = net["kernel1"].shape
            first, second = nn.Linear(embedding, hidden), nn.Linear(hidden, self.ctx.shape[1])
            fill_linear(first, {"kernel": net["kernel1"], "bias": net["bias1"]}, dtype)
            fill_linear(second, {"kernel": net["kernel2"], "bias": net["bias2"]}, dtype)
            self.meta_net = nn.Sequential(first, nn.ReLU(), second)
        self.prefix, self.suffix = embedded[:, :1], embedded[:, 1 + n_ctx :]

    def join(self, context: torch.Tensor) -> torch.Tensor:
        """Whole prompts `[classes, 77, width]` around one context `[M, width]`."""
        context = context.expand(len(self.prefix), -1, -1)
        return torch.cat([self.prefix, context, self.suffix], dim=1)

    def forward(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        """The prompts of every image in turn; of all of them where there is no meta-net."""
        if self.meta_net is None:
            yield self.join(self.ctx)
        else:
            for shift in self.meta_net(images):
                yield self.join(self.ctx + shift)


class LowRankAttention(nn.Module):
    """An attention some of whose three inner products have low-rank updates (CLIP-LoRA).

    Args:
        attention: the frozen one.
        factors: `[width, rank]` and `[rank, width]` by "query", "key" and "value".
        scale: of the updates.
        dropout: of the inputs of the updates.
    """

    def __init__(
        self,
        attention: Any,
        factors: Mapping[str, tuple[np.ndarray, np.ndarray]],
        scale: float,
        dropout: float,
    ):
        super().__init__()
        self.heads, self.scale, self.dropout = attention.num_heads, scale, nn.Dropout(dropout)
        self.weights = dict(zip(THIRDS, attention.in_proj_weight.data.chunk(3), strict=True))
        self.biases = dict(zip(THIRDS, attention.in_proj_bias.data.chunk(3), strict=True))
        self.output = attention.out_proj.requires_grad_(False)
        learned = {name: map(nn.Parameter, map(tensor, pair)) for name, pair in factors.items()}
        self.factors = nn.ModuleDict({name: nn.ParameterList(p) for name, p in learned.items()})

    def project(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """One third, `[batch, heads, length, dim]`."""
        y = functional.linear(x, self.weights[name], self.biases[name])
        if name in self.factors:
            down, up = self.factors[name]
            y = y + self.scale * (self.dropout(x) @ down @ up)
        length, batch, width = y.shape
        return y.reshape(length, batch, self.heads, width // self.heads).permute(1, 2, 0, 3)

    def forward(
        self, x: torch.Tensor, *_: torch.Tensor, attn_mask: torch.Tensor | None, **__: bool
    ) -> tuple[torch.Tensor, None]:
        """As `nn.MultiheadAttention` on one input."""
        thirds = [self.project(name, x) for name in THIRDS]
        mixed = functional.scaled_dot_product_attention(*thirds, attn_mask=attn_mask)
        return self.output(mixed.permute(2, 0, 1, 3).reshape(x.shape)), None


class LowRankReference:
    """CLIP-LoRA in both towers: every step encodes all prompts, of 77 tokens, and the images.

    Args:
        weights: coop_jax's CLIP as nested dicts of arrays.
        heads: of the text tower and the image tower.
        factors: of `text` and `vision` the stacked matrices `down` and `up` by name.
        tokens: `[classes, 77]` ids of the prompts.
        scale: of the updates.
        dropout: of the inputs of the updates.
    """

    def __init__(
        self,
        weights: Mapping[str, Any],
        heads: tuple[int, int],
        factors: Mapping[str, Any],
        tokens: np.ndarray,
        *,
        scale: float,
        dropout: float,
    ):
        self.tokens = torch.tensor(np.asarray(tokens), dtype=torch.int64)
        self.embedded = tensor(weights["text"]["token_embedding"])[self.tokens]
        self.text = TextEncoder(weights["text"], heads[0], torch.float32)
        self.image = ImageEncoder(weights["vision"], heads[1], torch.float32)
        self.attentions: dict[str, list[LowRankAttention]] = {}
        for name, module in (("text", self.text), ("vision", self.image)):
            module.requires_grad_(False)
            for layer, block in enumerate(module.transformer):
                of_layer = {
                    part: (down[layer], factors[name]["up"][part][layer])
                    for part, down in factors[name]["down"].items()
                }
                block.attn = LowRankAttention(block.attn, of_layer, scale, dropout)
                self.attentions.setdefault(name, []).append(block.attn)
        parameters = (*self.text.parameters(), *self.image.parameters())
        learned = [parameter for parameter in parameters if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=2e-4, weight_decay=1e-2)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """One training step; the loss before it. The gradients stay in the parameters."""
        texts = functional.normalize(self.text(self.embedded, self.tokens), dim=-1)
        logits = 100.0 * functional.normalize(self.image(images), dim=-1) @ texts.t()
        loss = functional.cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def gradient(self, tower: str, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Gradients of a tower's stacked matrices `down` and `up` at the last step."""
        pairs = [attention.factors[part] for attention in self.attentions[tower]]
        down, up = (np.stack([pair[side].grad for pair in pairs]) for side in (0, 1))
        return down, up


class Reference:
    """CoOp (class token at the end, shared context) or CoCoOp, as the official code computes it.

    Args:
        weights: coop_jax's CLIP as nested dicts of arrays.
        heads: of the text tower and the image tower.
        learned: the context and, for CoCoOp, the meta-net, before training.
        tokens: `[classes, 77]` ids of "placeholder class name."
        n_ctx: number of context vectors M.
        images: whether to build the image tower.
    """

    def __init__(
        self,
        weights: Mapping[str, Any],
        heads: tuple[int, int],
        learned: Mapping[str, Any],
        tokens: np.ndarray,
        n_ctx: int,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        images: bool = False,
    ):
        self.device, self.dtype = torch.device(device), dtype
        with self.device:
            self.tokens = torch.tensor(np.asarray(tokens), dtype=torch.int64)
            table = tensor(weights["text"]["token_embedding"])
            embedded = functional.embedding(self.tokens, table).to(dtype)
            self.learner = PromptLearner(learned, embedded, n_ctx, dtype)
            self.text = TextEncoder(weights["text"], heads[0], dtype)
            self.image = ImageEncoder(weights["vision"], heads[1], dtype) if images else None
            self.scale = tensor(weights["logit_scale"])
        for module in (self.text, self.image):
            if module is not None:
                module.eval().requires_grad_(False)
        self.optimizer = torch.optim.SGD(
            self.learner.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY
        )

    def weight_bytes(self) -> int:
        """Bytes of the frozen towers and of the embeddings around the contexts."""
        modules = [module for module in (self.text, self.image) if module is not None]
        tensors = [parameter for module in modules for parameter in module.parameters()]
        return sum(found.nbytes for found in (*tensors, self.learner.prefix, self.learner.suffix))

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Unnormalised image features of normalised images or, without a tower, as they are."""
        inputs = inputs.to(self.device, self.dtype)
        return inputs if self.image is None else self.image(inputs)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """`[batch, classes]` of unnormalised image features."""
        images = features / features.norm(dim=-1, keepdim=True)
        scale, found = self.scale.exp().to(self.dtype), []
        for number, prompts in enumerate(self.learner(images)):
            texts = self.text(prompts, self.tokens)
            texts = texts / texts.norm(dim=-1, keepdim=True)
            chosen = images if self.learner.meta_net is None else images[number : number + 1]
            found.append(scale * chosen @ texts.t())
        return torch.cat(found)

    def step(self, inputs: torch.Tensor, labels: torch.Tensor) -> float:
        """One training step; the loss before it. The gradients stay in the parameters."""
        logits = self.logits(self.features(inputs))
        loss = functional.cross_entropy(logits, labels.to(self.device))
        if not torch.isfinite(loss):
            raise FloatingPointError("Loss is infinite or NaN!")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def gradient(self) -> np.ndarray:
        """The context's gradient at the last step, float32."""
        assert self.learner.ctx.grad is not None
        return self.learner.ctx.grad.float().cpu().numpy()

    def tune(
        self, features: torch.Tensor, *, share: float, steps: int, rate: float, decay: float
    ) -> np.ndarray:
        """TPT's logits `[images, classes]` of features `[images, views, embedding]`, one by one.

        The context and AdamW start anew for every image; the confident views of the first step are
        those of all; the prompts are encoded before every step and for the prediction.
        """
        first, found = self.learner.ctx.detach().clone(), []
        for views in features.to(self.device, self.dtype):
            with torch.no_grad():
                self.learner.ctx.copy_(first)
            optimizer = torch.optim.AdamW([self.learner.ctx], lr=rate, weight_decay=decay)
            chosen = None
            for _ in range(steps):
                logs = self.logits(views).float().log_softmax(dim=1)
                if chosen is None:
                    entropies = -(logs.exp() * logs).sum(dim=1)
                    chosen = entropies.argsort()[: int(len(views) * share)]
                mean = logs[chosen].logsumexp(dim=0) - np.log(len(chosen))
                optimizer.zero_grad()
                (-(mean.exp() * mean).sum()).backward()
                optimizer.step()
            with torch.no_grad():
                found.append(self.logits(views[:1])[0].float().cpu().numpy())
        with torch.no_grad():
            self.learner.ctx.copy_(first)
        return np.stack(found)

    @torch.no_grad()
    def evaluate(self, features: torch.Tensor) -> np.ndarray:
        """Logits `[images, classes]` of image features, in batches of 100, each with its texts."""
        batches = features.to(self.device, self.dtype).split(TEST_BATCH)
        return np.concatenate([self.logits(batch).float().cpu().numpy() for batch in batches])
