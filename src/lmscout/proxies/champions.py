"""lmscout's champions: proxies that its deep search found, and the commands that found them.

Each was chosen on the search split of the benchmarks that it names, and increases with quality.  A
later engine, or a CPU that rounds differently, ends with another formula of about the same
correlation (docs/deep-search.md).
"""

from typing import NamedTuple


class Champion(NamedTuple):
    """A proxy, the command and the revision of lmscout that found it, on which benchmarks."""

    name: str
    text: str
    command: str
    revision: str
    found_on: tuple[str, ...]
    split: str  # size of the search split, and correlations on the others


CHAMPIONS = (
    Champion(
        "champion-encoder",
        "negate((sum(average(abs(abslog(softmax(weight))))) * sum(total(frobenius(sqrt(jacob)))) "
        "+ max(total(head))) * (min(average(logsoftmax(mixer_weight))) "
        "* sum(average(logsoftmax(log(mlp_weight))))) "
        "* (sum(average(logsoftmax(log(invert(grad))))) + sum(negate(average(abs(jacob))))) "
        "* (sum(average(frobenius(minmax(head))) + total(mlp_weight)) "
        "+ sum(total(frobenius(sub(weight, abs(weight)))))))",
        "lmscout discover flexibert --space deep --objective spearman --no-spec-leaves "
        "--search 100 --seed 0",
        "fad948d",
        ("flexibert",),
        "100 encoders; on the other 400 ρ 0.912; reads no configuration",
    ),
    Champion(
        "champion-decoder",
        "negate(min(average(log(mlp_weight))) * width * max(total(square(act))) "
        "* (sum(total(div(frobenius(mlp_grad), square(square(mlp_weight))))) "
        "- sum(total(div(frobenius(mlp_grad), square(mlp_grad))))) "
        "* (max(total(act) + total(minmax(weight))) "
        "* mean(total(square(square(log(mlp_weight)))))) * (max(total(act)) "
        "* sum(total(square(mul(log(mlp_weight), mul(abslog(mlp_weight), mlp_grad)))))))",
        "lmscout discover pico,lts:random_GPT2_wt103 --space deep --objective spearman "
        "--search 40 --seed 0",
        "fad948d",
        ("pico", "lts:random_GPT2_wt103"),
        "40 decoders of each; on the others ρ 0.940 (pico) and 0.962 (GPT-2)",
    ),
    Champion(
        "champion",
        "sum(total(frobenius(mlp_grad))) * sum(total(sigmoid(invert(sub(act_grad, abs(act)))))) "
        "* (sum(total(minmax(act_grad))) * sum(total(sigmoid(jacob))) "
        "* sum(total(abs(mlp_grad)))) * (sum(total(abs(mul(act, act_grad)))) "
        "* sum(total(sqrt(head))) - mean(total(logsoftmax(mlp_grad)))) "
        "* ((depth * sum(total(relu(mlp_grad))) + max(total(act))) * params * depth)",
        "lmscout discover flexibert,pico,lts:random_GPT2_wt103 --space deep --objective spearman "
        "--search 40 --seed 0",
        "fad948d",
        ("flexibert", "pico", "lts:random_GPT2_wt103"),
        "40 architectures of each; on the others ρ 0.865 (FlexiBERT), 0.902 (pico), 0.969 (GPT-2)",
    ),
)
