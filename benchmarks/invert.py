"""Inversion of effects on the bundled model: seen and unseen noise, unseen concepts, the style judge.

    python benchmarks/invert.py --record docs/invert.json

Aims, for at least 4 of 6 effects, on unseen noise and unseen concepts: distance to the target less by 50 %, and the
style judge sees the effect in 80 %. `--target effect` learns the effect from changed images instead of from the
model's own word.
"""

import sys

from protocol import about, article, flags_of, model, spread
from record import write_record

import adjointdpm as adp
from adjointdpm.metrics import EFFECTS
from adjointdpm.tasks import EffectGoal, InvertSettings, PromptGoal, PromptRows, TokenVectors
from adjointdpm.tasks.invert import invert


def main() -> None:
    """Run the protocol."""
    parser = flags_of(__doc__, steps=160, prompts=8, held_out=16, noises=2, sampling=16)
    parser.add_argument("--effects", nargs="+", default=list(EFFECTS))
    parser.add_argument("--target", choices=("word", "effect"), default="word")
    parser.add_argument("--learn", choices=("token", "rows"), default="token")
    parser.add_argument("--vectors", type=int, default=2, help="tokens the new word stands for")
    parser.add_argument("--start", default="a", help="a known word whose embedding it starts from")
    parser.add_argument("--learning_rate", type=float, default=0.03)
    parser.add_argument("--batch", type=int, default=4)
    flags = parser.parse_args()
    judge, results = adp.load_classifier("emoji/judge/style", device=flags.device), {}
    number = flags.prompts + flags.held_out
    colours = [about["colours"][i % len(about["colours"])] for i in range(number)]
    for effect in flags.effects:
        sampler = model(flags)  # loaded anew for each: its tokenizer grows
        texts = [
            f"a <effect> {phrase.removeprefix('an ').removeprefix('a ')} on {article(colour)} background"
            for (_, phrase), colour in zip(spread(number), colours, strict=True)
        ]
        learned = (
            TokenVectors(sampler, "<effect>", flags.start, flags.vectors)
            if flags.learn == "token"
            else PromptRows(sampler, "<effect>", flags.start)
        )
        found = invert(
            sampler,
            learned,
            PromptGoal(effect) if flags.target == "word" else EffectGoal(EFFECTS[effect]),
            texts[: flags.prompts],
            texts[flags.prompts :],
            output=flags.output / f"invert-{effect.replace(' ', '-')}",
            settings=InvertSettings(
                max_train_steps=flags.steps,
                learning_rate=flags.learning_rate,
                train_batch_size=flags.batch,
                num_validation_images=flags.noises,
                seed=flags.seed,
            ),
            judge=judge,
            label=effect,
        )
        results[effect] = {name: report.as_dict() for name, report in found.reports.items()}
        for name, report in found.reports.items():
            less = 100 * (report.reduction or 0)
            print(f"{effect:14} {name:16} less by {less:5.1f} %; judge: {report.judged}")
        write_record(flags.record, "invert.py", sys.argv[1:], effects=results)


if __name__ == "__main__":
    main()
