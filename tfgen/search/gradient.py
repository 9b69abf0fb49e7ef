"""A first-order estimate: how the score would change if a token were another one.

The score is differentiable in the code vectors of a prefix where decoder and verifier are. Its
gradient at one code says, as far as a straight line can, what every other code of the codebook
would score. Source of the idea: HotFlip (arXiv 1712.06751), AutoPrompt (arXiv 2010.15980).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tfgen.search.trail import Trail

GRADIENT_COST = 3
"""What a gradient costs in decodes: the way back takes about twice the way there."""
REACH = 0.5
"""How far an expansion is trusted, in root mean square distances between two codes. Of the few
expansions of a prefix, the nearer ones count more: exp(-distance^2 / 2 reach^2)."""


def scores_and_gradients(trail: Trail, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Int64[n, k] -> what the verifier gives their pictures, Float32[n], and the gradients of that
    in their code vectors, Float32[n, k, d]; on the CPU. Costs what the caller charges.

    Raises TfgenError or RuntimeError where there is no gradient, TfgenError where there is no
    memory for that of one row.
    """

    def both(part: Tensor) -> tuple[Tensor, Tensor]:
        with (
            trail.evaluator.accounts.timed("decode"),
            torch.inference_mode(False),  # inference tensors take no part in a backward pass
            torch.enable_grad(),
        ):
            points = trail.tokenizer.embed(part.clone()).clone().requires_grad_()
            scores = trail.verifier.score(trail.tokenizer.decode_embeddings(points), trail.target)
            (gradients,) = torch.autograd.grad(scores.sum(), points)
        return scores.detach().float().cpu(), gradients.float().cpu()

    parts = trail.evaluator.in_parts(tokens, both)
    scores, gradients = (torch.cat(values) for values in zip(*parts, strict=True))
    return scores, gradients


class Expansion:
    """The verifier's scores near some sequences, the anchors, to first order.

    Blind to what the decoder decides by a threshold: an object that `sprites` does not paint yet
    has no gradient. Such estimates can be far off, which costs decodes but wins nothing, as what
    they choose is decoded and scored like all else.
    """

    def __init__(self, trail: Trail, anchors: Tensor, new: slice) -> None:
        """anchors: Int64[B, A, k], A of each parent; new: the positions that are being chosen.
        What their gradients cost is charged to the accounts."""
        self.new, shape = new, anchors.shape[:2]
        scores, slopes = scores_and_gradients(trail, anchors.flatten(0, 1))
        trail.evaluator.account("gradients", shape.numel(), GRADIENT_COST)
        codes = trail.tokenizer.code_embeddings().float().cpu()  # [V, d]
        self._codes = codes
        self._reach = REACH**2 * 2 * float(codes.var(dim=0, correction=0).sum())
        self._points = codes[anchors.cpu()[..., new]].flatten(2)  # [B, A, new * d]
        self._scores = scores.view(shape)  # [B, A]
        self._slopes = slopes[:, new].flatten(1).view(*shape, -1)  # [B, A, new * d]

    def predict(self, tokens: Tensor) -> Tensor:
        """Candidates of the same parents, Int64[B, M, k] -> their scores, Float32[B, M]."""
        points = self._codes[tokens.cpu()[..., self.new]].flatten(2)  # [B, M, new * d]
        at_anchors = (self._points * self._slopes).sum(dim=2)  # [B, A]
        lines = points @ self._slopes.mT + (self._scores - at_anchors)[:, None]  # [B, M, A]
        nearness = torch.cdist(points, self._points).square() / (-2 * self._reach)
        return (nearness.softmax(dim=2) * lines).sum(dim=2)
