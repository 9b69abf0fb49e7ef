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


class Expansion:
    """The verifier's scores near some sequences, the anchors, to first order.

    Blind to what the decoder decides by a threshold: an object that `sprites` does not paint yet
    has no gradient. Such estimates can be far off, which costs decodes but wins nothing, as what
    they choose is decoded and scored like all else.
    """

    def __init__(self, trail: Trail, anchors: Tensor, new: slice) -> None:
        """anchors: Int64[B, A, k], A of each parent; new: the positions that are being chosen.

        Charges the accounts. Raises TfgenError or RuntimeError where there is no gradient.
        """
        self.trail, self.new = trail, new
        tokenizer, evaluator = trail.tokenizer, trail.evaluator
        shape, scores, slopes = anchors.shape[:2], [], []
        with evaluator.accounts.timed("decode"):
            # inference tensors, such as a search is full of, take no part in a backward pass
            for part in anchors.flatten(0, 1).split(evaluator.rows):
                with torch.inference_mode(False), torch.enable_grad():
                    points = tokenizer.embed(part.clone()).clone().requires_grad_()  # [n, k, d]
                    pictures = tokenizer.decode_embeddings(points)
                    score = trail.verifier.score(pictures, trail.target)
                    (slope,) = torch.autograd.grad(score.sum(), points)
                scores.append(score.detach().float().cpu())
                slopes.append(slope[:, new].float().cpu())
        evaluator.account("gradients", shape.numel(), GRADIENT_COST)
        codes = tokenizer.code_embeddings().float().cpu()  # [V, d]
        self._codes = codes
        self._reach = REACH**2 * 2 * float(codes.var(dim=0, correction=0).sum())
        self._points = codes[anchors.cpu()[..., new]].flatten(2)  # [B, A, new * d]
        self._scores = torch.cat(scores).view(shape)  # [B, A]
        self._slopes = torch.cat(slopes).flatten(1).view(*shape, -1)  # [B, A, new * d]

    def predict(self, tokens: Tensor) -> Tensor:
        """Candidates of the same parents, Int64[B, M, k] -> their scores, Float32[B, M]."""
        points = self._codes[tokens.cpu()[..., self.new]].flatten(2)  # [B, M, new * d]
        at_anchors = (self._points * self._slopes).sum(dim=2)  # [B, A]
        lines = points @ self._slopes.mT + (self._scores - at_anchors)[:, None]  # [B, M, A]
        nearness = torch.cdist(points, self._points).square() / (-2 * self._reach)
        return (nearness.softmax(dim=2) * lines).sum(dim=2)
