"""Trains the demo model: tokenizer, weights, held-out loss. See README.md.

Writes OUT/tokenizer.json, OUT/model.pt (the weights with the least held-out loss) and OUT/log.jsonl.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import corpus
from model import Config, Llama

BOS, END, USER, ASSISTANT = SPECIAL = ["<s>", "<|end|>", "<|user|>", "<|assistant|>"]


def make_tokenizer(segments, vocabulary):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # GPT-2's splitting
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(segments, trainer)
    return tokenizer


def conversation_ids(encode, special, speeches):
    """As the chat template writes it: <s><|user|>…<|end|><|assistant|>…<|end|>."""
    ids = [special[BOS]]
    for at, speech in enumerate(speeches):
        ids += [special[[USER, ASSISTANT][at % 2]], *encode(speech), special[END]]
    return ids


class Data:
    """Rows of `context` + 1 ids for training, and the fixed rows of the held-out text."""

    def __init__(self, folder, vocabulary, context, seed):
        self.random = random.Random(seed)
        self.context = context
        training, held_out = corpus.read(folder)
        self.tokenizer = make_tokenizer(training, vocabulary)
        encode = lambda text: self.tokenizer.encode(text).ids
        self.special = {token: self.tokenizer.token_to_id(token) for token in SPECIAL}
        self.text = [id for segment in training for id in encode(segment + "\n\n")]
        talks = [talk for segment in training for talk in corpus.conversations(segment)]
        self.talks = [conversation_ids(encode, self.special, talk) for talk in talks]
        held = [id for segment in held_out for id in encode(segment + "\n\n")]
        self.held_out_bytes = sum(len((segment + "\n\n").encode()) for segment in held_out)
        self.held_out_tokens = len(held)
        # Every row starts with <s>, and every id of the text is predicted once.
        self.held_out = [
            [self.special[BOS], *held[at : at + context]] for at in range(0, len(held), context)
        ]

    def row(self, conversations):
        """(ids, how many of them count)."""
        length = self.context + 1
        if self.random.random() < conversations:
            ids = []
            while len(ids) < length:
                ids += self.random.choice(self.talks)
            return ids[:length]
        start = self.random.randrange(len(self.text) - length)
        return [self.special[BOS], *self.text[start : start + length - 1]]

    def batch(self, rows, conversations):
        return torch.tensor([self.row(conversations) for _ in range(rows)])


@torch.no_grad()
def held_out_loss(model, data, device, dtype):
    """Nats a token over all of the held-out text."""
    model.eval()
    total, count = 0.0, 0
    for row in data.held_out:
        ids = torch.tensor([row], device=device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model(ids[:, :-1])
        total += F.cross_entropy(logits[0].float(), ids[0, 1:], reduction="sum").item()
        count += len(row) - 1
    model.train()
    return total / count


def optimizers(model, rate):
    """Muon (Jordan 2024) for the layers' matrices, AdamW for embedding and norms."""
    matrices = [w for name, w in model.named_parameters() if w.ndim == 2 and "blk" in name]
    others = [w for name, w in model.named_parameters() if w.ndim != 2 or "blk" not in name]
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, momentum=0.95)
    adam = torch.optim.AdamW(others, lr=rate / 5, betas=(0.9, 0.95), weight_decay=0.01)
    return [muon, adam]


def train(args):
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    config = Config()
    begin = time.monotonic()
    data = Data(args.corpus, config.vocabulary, config.context, args.seed)
    data.tokenizer.save(str(args.out / "tokenizer.json"))
    model = Llama(config, args.dropout).to(device)
    run = torch.compile(model) if args.compile else model
    count = sum(weight.numel() for weight in model.parameters())
    print(
        f"{count} parameters; {len(data.text)} tokens of text, {sum(map(len, data.talks))} of "
        f"conversations, {data.held_out_tokens} held out; {time.monotonic() - begin:.0f} s",
        flush=True,
    )
    steppers = optimizers(model, args.rate)
    rates = [group["lr"] for stepper in steppers for group in stepper.param_groups]
    log = (args.out / "log.jsonl").open("w")
    start = time.monotonic()
    step, best, recent, next_check = 0, math.inf, [], 0.05
    while True:
        # The schedule follows the clock, so that any machine ends with a small rate.
        done = max((time.monotonic() - start) / (60 * args.minutes), step / args.steps)
        if done >= next_check or done >= 1:
            next_check += 0.1
            held = held_out_loss(model, data, device, dtype)
            row = {
                "step": step,
                "minutes": round((time.monotonic() - start) / 60, 2),
                "training_loss": round(sum(recent) / max(len(recent), 1), 4),
                "held_out_loss": round(held, 4),
                "held_out_bits_per_byte": round(
                    held * data.held_out_tokens / data.held_out_bytes / math.log(2), 4
                ),
            }
            print(row, flush=True)
            log.write(json.dumps(row) + "\n")
            log.flush()
            recent = []
            if held < best:
                best = held
                torch.save(model.state_dict(), args.out / "model.pt")
        if done >= 1:
            break
        scale = min(1.0, (step + 1) / 50) * (1.0 if done < 0.4 else max(0.02, (1 - done) / 0.6))
        groups = [group for stepper in steppers for group in stepper.param_groups]
        for group, rate in zip(groups, rates):
            group["lr"] = rate * scale
        ids = data.batch(args.rows, args.conversations).to(device)
        with torch.autocast(device.type, dtype, enabled=args.bf16):
            logits = run(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        recent.append(loss.item())
        step += 1
        if step in (5, 20) or step % 100 == 0:
            speed = step * ids[:, 1:].numel() / (time.monotonic() - start)
            print(f"step {step}: loss {loss.item():.3f}, {speed:.0f} tokens/s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="folder of the texts")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--minutes", type=float, default=60, help="how long to train at most")
    parser.add_argument("--steps", type=int, default=100_000, help="most steps")
    parser.add_argument("--rows", type=int, default=8, help="rows of 512 tokens a step")
    parser.add_argument("--rate", type=float, default=0.02, help="learning rate of Muon")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--conversations", type=float, default=0.2, help="share of the rows")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train(args)
