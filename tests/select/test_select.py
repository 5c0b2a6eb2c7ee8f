"""Choosing layers: every selector finds what matters, in models where it was planted and in tables of scores."""

import pytest
import torch

import swaa
from families import tiny_model
from select_models import TableProblem, own_answers, planted, planted_heads, scorer
from swaa.attention import BACKENDS
from swaa.config import ConfigError, SWAAConfig
from swaa.evaluate import answer_logits
from swaa.select import SELECTORS, Problem
from swaa.select.gates import Gates
from swaa.select.gates import _gates as gates_of
from swaa.select.gates import _Mixture as Mixture
from swaa.select.greedy import Greedy
from swaa.select.lazy import Lazy
from swaa.select.nll import Nll

RECIPE = SWAAConfig(window=6, sinks=2, fa_decode=True)


# Selectors


@pytest.mark.parametrize(
    ("method", "layers", "fa_decode"),
    [(method, (2,), True) for method in ("nll", "nll-won", "greedy", "backward", "swap")]
    # One of two layers that need each other helps nothing by itself: what is lost tells, what is won does not.
    + [(method, (1, 3), False) for method in ("nll", "backward", "swap")],
)
def test_a_selector_finds_the_planted_layers(method, layers, fa_decode):
    model = planted(layers)
    problem = Problem(scorer(model, own_answers(model), batch_size=3), RECIPE.replace(fa_decode=fa_decode))
    choice = SELECTORS[method].select(problem, len(layers))
    assert choice.chosen == layers
    assert sorted(choice.scores) == list(range(5))
    # Whether the layers that do nothing are full changes nothing.
    idle = [score for layer, score in choice.scores.items() if layer not in layers]
    assert idle == pytest.approx([0.0] * len(idle), abs=1e-5)
    assert min(choice.scores[layer] for layer in layers) > 1e-3
    assert choice.passes > 0
    assert choice.seconds > 0


@pytest.mark.parametrize("method", ["nll", "nll-won", "greedy", "backward", "swap"])
def test_a_selector_finds_the_planted_head(method):
    model = planted_heads([(2, 1)])
    problem = Problem(scorer(model, own_answers(model), batch_size=3), RECIPE, "heads")
    choice = SELECTORS[method].select(problem, 1)
    assert choice.chosen == ((2, 1),)
    assert sorted(choice.scores) == [(layer, head) for layer in range(5) for head in range(2)]
    assert choice.scores[2, 1] > 1e-3
    assert [score for unit, score in choice.scores.items() if unit != (2, 1)] == pytest.approx([0.0] * 9, abs=1e-5)


def test_heads_of_a_whole_layer_are_a_full_layer():
    problem = Problem(scorer(tiny_model(), own_answers(tiny_model(), count=1)), RECIPE, "heads")
    config = problem.with_full([(3, 1), (1, 0), (3, 0)])
    assert config == RECIPE.replace(full_layers=[3], full_heads={1: [0]})
    assert problem.full_layers([(3, 1), (1, 0), (3, 0)]) == 1.5
    one_by_one = RECIPE.replace(fa_decode=[1, 3])
    assert Problem(problem.scorer, one_by_one, "heads").with_full([(3, 0), (3, 1)]).fa_decode == (1,)
    with pytest.raises(ValueError, match="use layers or heads"):
        Problem(problem.scorer, RECIPE, "head")


def test_heads_must_be_plain_ones():
    model = tiny_model()
    model.config.v_head_dim = 4  # as families with latent attention have it
    problem = Problem(scorer(model, own_answers(tiny_model(), count=1)), RECIPE, "heads")
    with pytest.raises(ConfigError, match="choose whole layers"):
        _ = problem.units


def test_periodic_takes_the_best_offset():
    model = planted((2,))
    problem = Problem(scorer(model, own_answers(model)), RECIPE)
    choice = SELECTORS["periodic"].select(problem, 1)
    assert choice.chosen == (2,)
    assert SELECTORS["periodic"].select(problem, 2).chosen == (2,)  # a step of 3: 0 and 3, 1 and 4, or 2
    assert SELECTORS["periodic"].select(problem, 3).chosen == (0, 2, 4)
    assert choice.passes == 5 * 6


@pytest.mark.parametrize("method", list(SELECTORS))
@pytest.mark.parametrize("unit", ["layers", "heads"])
def test_nothing_and_everything_are_budgets(method, unit):
    model = planted((2,), depth=3)
    problem = Problem(scorer(model, own_answers(model, count=2)), RECIPE, unit)
    for budget in (0, len(problem.units)):
        choice = SELECTORS[method].select(problem, budget)
        assert choice.chosen == problem.units[:budget]
        assert tuple(choice.scores) == problem.units


def test_native_windows_are_no_choice():
    model = tiny_model("gemma2")
    problem = Problem(scorer(model, own_answers(tiny_model(), count=2)), RECIPE)
    assert problem.units == (1, 3)
    for method in SELECTORS:
        choice = SELECTORS[method].select(problem, 1)
        assert set(choice.chosen) <= {1, 3}
        assert set(choice.scores) == {1, 3}


COVERS = {0: "abde", 1: "abc", 2: "def", 5: "ab", 6: "cd", 7: "ef"}


def cover(layers):
    """Each layer finds some of six facts: 0 finds most by itself, 5 to 7 all together, but of two only 1 and 2 do."""
    return 6.0 - len({fact for layer in layers for fact in COVERS.get(layer, "")})


def test_swap_leaves_the_traps_that_catch_the_others():
    problem = TableProblem(8, cover)
    for method in ("nll", "nll-won", "greedy"):
        assert SELECTORS[method].select(problem, 2).chosen == (0, 1)
    assert SELECTORS["backward"].select(problem, 2).chosen == (6, 7)
    choice = SELECTORS["swap"].select(problem, 2)
    assert choice.chosen == (1, 2)
    assert [choice.scores[layer] for layer in choice.chosen] == [3.0, 3.0]


def test_backward_sees_what_only_helps_together():
    """A fact passes through layers 2 and 5; layer 0 helps a little by itself."""
    problem = TableProblem(8, lambda layers: 1.0 - 0.1 * (0 in layers) - 0.8 * ({2, 5} <= layers))
    assert SELECTORS["greedy"].select(problem, 2).chosen == (0, 1)
    choice = SELECTORS["backward"].select(problem, 2)
    assert choice.chosen == (2, 5)
    assert choice.scores == pytest.approx({0: 0.1, 2: 0.8, 5: 0.8} | dict.fromkeys((1, 3, 4, 6, 7), 0.0))


def test_greedy_sees_redundancy():
    """Layers 0 and 1 do the same: one of them is enough."""
    problem = TableProblem(6, lambda layers: 1.0 - 0.5 * bool({0, 1} & layers) - 0.2 * (4 in layers))
    assert Nll(won=True).select(problem, 2).chosen == (0, 1)
    choice = Greedy().select(problem, 2)
    assert choice.chosen == (0, 4)
    assert choice.scores == pytest.approx({0: 0.5, 1: 0.0, 2: 0.0, 3: 0.0, 4: 0.2, 5: 0.0})


def test_lazy_ratio_is_that_of_a_slow_loop():
    model = tiny_model("qwen2", attn_implementation="eager")
    sample = own_answers(tiny_model(), count=1)[0]
    problem = Problem(scorer(model, [sample]), SWAAConfig(window=9, sinks=2))
    found = Lazy(queries=7).scores(problem)
    by_head = Lazy(queries=7).scores(Problem(problem.scorer, problem.config, "heads"))
    ids = torch.tensor([list(sample.prompt_ids + sample.prefix_ids + sample.answer_ids)])
    with torch.no_grad():
        weights = model(ids, output_attentions=True).attentions
    rows = ids.shape[1]
    for layer, attention in enumerate(weights):
        shares = []
        for row in range(rows - 7, rows):
            seen = [key for key in range(row + 1) if row - key < 9 or key < 2]
            # Two query heads for each of the two KV heads.
            shares.append(attention[0, :, row, seen].sum(-1).unflatten(0, (2, 2)).mean(1))
        heads = 1 - sum(shares) / 7
        assert found[layer] == pytest.approx(heads.mean().item(), abs=1e-5)
        assert [by_head[layer, head] for head in (0, 1)] == pytest.approx(heads.tolist(), abs=1e-5)
    assert swaa.adaptation(model) is None


def test_lazy_keeps_the_layer_that_looks_far():
    model = tiny_model(attention_bias=True, num_hidden_layers=5)
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight.zero_()
                # Equal vectors before RoPE: a score that is highest at distance 0. No vector at all: a flat one.
                projection.bias.fill_(0.0 if number == 3 else 6.0)
    choice = Lazy().select(Problem(scorer(model, own_answers(model, count=2)), RECIPE), 1)
    assert choice.chosen == (3,)
    assert choice.scores[3] > 0.5
    assert max(score for layer, score in choice.scores.items() if layer != 3) < 0.2


def test_the_recipe_must_slide():
    with pytest.raises(ConfigError, match="no layer can be chosen"):
        Problem(scorer(tiny_model(), own_answers(tiny_model(), count=1)), SWAAConfig())


def test_full_layers_leave_the_list_of_fa_decode():
    problem = Problem(scorer(tiny_model(), own_answers(tiny_model(), count=1)), RECIPE.replace(fa_decode=[0, 2]))
    assert problem.units == (0, 1, 2, 3)
    assert problem.with_full((2, 3)) == RECIPE.replace(fa_decode=[0], full_layers=[2, 3])


# Gates


@pytest.mark.parametrize(("unit", "planted_unit"), [("layers", 2), ("heads", (2, 1))])
def test_gates_find_what_was_planted(unit, planted_unit):
    model = planted((2,)) if unit == "layers" else planted_heads([planted_unit])
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    next(model.parameters()).requires_grad_(False)
    problem = Problem(scorer(model, own_answers(model), batch_size=16), RECIPE, unit)
    choice = Gates(steps=12).select(problem, 1)
    assert choice.chosen == (planted_unit,)
    assert choice.scores[planted_unit] > 0.8
    assert sum(choice.scores.values()) == pytest.approx(1, abs=1e-3)
    assert choice.passes == 12 * 4 * 2
    assert swaa.adaptation(model) is None
    for number, (name, parameter) in enumerate(model.named_parameters()):
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert parameter.requires_grad == (number > 0)


@pytest.mark.parametrize("slope", [0.5, 6.0])
def test_gates_sum_up_to_the_budget_whatever_changes(slope):
    values = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert gates_of(values, 3, slope).sum().item() == pytest.approx(3)
    assert torch.autograd.gradcheck(lambda x: gates_of(x, 3, slope), values, atol=1e-6)


@pytest.mark.parametrize("full", [(), (0, 1, 2, 3), (1, 3)])
def test_closed_and_open_gates_are_the_two_attentions(full):
    model = tiny_model()
    samples = own_answers(model, count=3)
    problem = Problem(scorer(model, samples), RECIPE)
    mixture = Mixture(problem)
    with BACKENDS.holding("gates", mixture), torch.no_grad():
        swaa.adapt(model, RECIPE.replace(backend="gates"))
        mixture.begin(torch.tensor([float(layer in full) for layer in range(4)]))
        found = answer_logits(model, samples)
    swaa.adapt(model, RECIPE.replace(full_layers=full))
    with torch.no_grad():
        for (one, _), (other, _) in zip(found, answer_logits(model, samples), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
