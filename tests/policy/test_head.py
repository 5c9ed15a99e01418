"""Log-probs and entropies through the head in slices, against the plain way with all logits at once."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_pspo.policy import head as head_module
from lightning_pspo.policy.head import head_logprobs
from lightning_pspo.policy.logprobs import logprobs_and_entropies

TOKENS, WIDTH, VOCABULARY = 23, 12, 57
Result = tuple[Tensor, Tensor | None]


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of four tokens, of which three are worked on at a time."""
    monkeypatch.setattr(head_module, "SLICE_NUMBERS", 4 * VOCABULARY)
    monkeypatch.setattr(head_module, "BLOCK_NUMBERS", 3 * VOCABULARY)


class Adapted(nn.Module):
    """A head with an adapter, which is no plain linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(WIDTH, 3, bias=False), nn.Linear(3, VOCABULARY, bias=False)
        self.out_features = VOCABULARY

    def forward(self, hidden: Tensor) -> Tensor:
        return self.base(hidden) + self.up(self.down(hidden))


def case(kind: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    """Return a head, hidden states, chosen tokens, and weights of log-probs and entropies in the loss."""
    torch.manual_seed(5)
    plain = nn.Linear(WIDTH, VOCABULARY, bias=kind == "bias")
    made = (Adapted(plain) if kind == "adapted" else plain).to(dtype)
    hidden = torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    chosen = torch.randint(VOCABULARY, (TOKENS,))
    return made, hidden, chosen, torch.randn(TOKENS, dtype=dtype), torch.randn(TOKENS, dtype=dtype)


def gradients(run: Callable[[nn.Module, Tensor, Tensor], Result], kind: str, dtype: torch.dtype) -> list[Tensor]:
    """Return log-probs, entropies and the gradients of a weighted sum of both."""
    made, hidden, chosen, of_logprobs, of_entropies = case(kind, dtype)
    logprobs, entropies = run(made, hidden, chosen)
    loss = (logprobs * of_logprobs).sum()
    if entropies is not None:
        loss = loss + (entropies * of_entropies).sum()
    loss.backward()
    assert hidden.grad is not None
    values = [logprobs, hidden.grad, *(parameter.grad for parameter in made.parameters() if parameter.grad is not None)]
    assert len(values) == 2 + len(list(made.parameters()))
    return [*values, entropies] if entropies is not None else values


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("kind", ["plain", "bias", "adapted"])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.6)])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_values_and_gradients_are_those_of_the_plain_way(
    kind: str, temperature: float, top_p: float, with_entropy: bool
) -> None:
    def sliced(head: nn.Module, hidden: Tensor, chosen: Tensor) -> Result:
        return head_logprobs(hidden, head, chosen, temperature, top_p, with_entropy)

    def plain(head: nn.Module, hidden: Tensor, chosen: Tensor) -> Result:
        return logprobs_and_entropies(head(hidden), chosen, temperature, top_p, with_entropy)

    for dtype, atol, rtol in ((torch.float64, 1e-12, 1e-10), (torch.float32, 1e-5, 1e-4)):
        torch.testing.assert_close(gradients(sliced, kind, dtype), gradients(plain, kind, dtype), atol=atol, rtol=rtol)


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("with_entropy", [False, True])
def test_gradients_in_mixed_precision(with_entropy: bool) -> None:
    def sliced(head: nn.Module, hidden: Tensor, chosen: Tensor) -> Result:
        with torch.autocast("cpu", torch.bfloat16):
            return head_logprobs(hidden, head, chosen, 0.7, 1.0, with_entropy)

    def plain(head: nn.Module, hidden: Tensor, chosen: Tensor) -> Result:
        return logprobs_and_entropies(head(hidden), chosen, 0.7, 1.0, with_entropy)

    pairs = zip(*(gradients(run, "plain", torch.float32) for run in (sliced, plain)), strict=True)
    assert all(float(((tensor - exact).norm() / exact.norm()).detach()) < 0.01 for tensor, exact in pairs)


@pytest.mark.usefixtures("small_slices")
def test_gradient_is_that_of_finite_differences() -> None:
    made, hidden, chosen, *_ = case("bias", torch.float64)

    def run(hidden: Tensor, weight: Tensor, bias: Tensor) -> Result:
        head = nn.Linear(WIDTH, VOCABULARY)
        del head.weight, head.bias
        head.weight, head.bias = weight, bias
        return head_logprobs(hidden, head, chosen[:5], 0.8, 1.0, with_entropy=True)

    inputs = (hidden[:5].detach().requires_grad_(), made.weight, made.bias)
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.usefixtures("small_slices")
def test_no_table_of_all_logits() -> None:
    """The widest tensor made, in the forward and in the backward pass, is a slice."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    made, hidden, chosen, *_ = case("plain", torch.float32)
    with Watch():
        head_logprobs(hidden, made, chosen, 0.7, 0.9, with_entropy=True)[0].sum().backward()
    assert largest <= max(4 * VOCABULARY, WIDTH * VOCABULARY)
    assert largest < TOKENS * VOCABULARY


def test_a_pass_without_a_token_reaches_every_weight() -> None:
    """A rank with fewer passes than another must have a gradient all the same."""
    made, hidden, chosen, *_ = case("plain", torch.float32)
    head_logprobs(hidden[:0], made, chosen[:0], 1.0, 1.0, with_entropy=False)[0].sum().backward()
    assert made.weight.grad is not None
    assert not made.weight.grad.any()


def test_autocast_computes_in_bfloat16_and_sums_in_float32() -> None:
    made, hidden, chosen, *_ = case("plain", torch.float32)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        logprobs, _ = head_logprobs(hidden, made, chosen, 1.0, 1.0, with_entropy=False)
        expected, _ = logprobs_and_entropies(made(hidden), chosen, 1.0, 1.0, with_entropy=False)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, expected, atol=1e-6, rtol=1e-5)
    logprobs.sum().backward()
    assert made.weight.grad is not None
    assert made.weight.grad.dtype == hidden.grad.dtype == torch.float32  # type: ignore[union-attr]
