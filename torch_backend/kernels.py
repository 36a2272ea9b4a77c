"""The fused kernels beneath torch's scaled_dot_product_attention, which does not hand out the log-sum-exp that they compute.

They belong to the one version of torch that this project pins. Where no kernel serves, the same in plain products.
"""

from __future__ import annotations

import math

import torch


def attend_and_sum(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None, causal: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled dot-product attention, as q, and the log-sum-exp of each row's scores, (B, H, R).

    q (B, H, R, head_dim); k, v (B, kv_heads, K, head_dim); `bias` (B, 1, R, K) is added to the scores; `causal` needs R = K.
    """
    aten = torch.ops.aten
    if q.device.type == "cpu":  # which takes fewer heads of keys than of queries
        return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=bias)
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    if q.device.type == "cuda" and bias is None and q.element_size() == 2:
        return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)[:2]
    scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1])
    if causal:
        scores += torch.full(scores.shape[-2:], -torch.inf, device=q.device).triu(1)
    if bias is not None:
        scores += bias
    total = scores.logsumexp(-1)
    return (scores - total[..., None]).exp().to(v.dtype) @ v, total
