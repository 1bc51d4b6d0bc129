"""The embedded drafter: one layer, no eyes, trained on what the target itself says.

The target answers training prompts at several temperatures; its law at every answer position is
kept (the most probable tokens), and the drafter learns to match it from the text alone: KL to the
target's distribution on the target's own text.
"""

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from specnb.scenes import TASKS, example
from specnb.training.data import pad
from specnb.training.loop import Stage, train

ANSWERS_SEED = 2_000  # scenes that neither the target's training nor the evaluation uses
TEMPERATURES = (0.0, 0.3, 0.7, 1.0)
MIX = {"caption": 0.5, "conversation": 0.28, "science": 0.22}
N_ANSWERS, BATCH, N_TOP, MAX_NEW_TOKENS = 3_840, 64, 32, 100
DRAFTER = Stage("drafter", steps=2000, batch=64, lr=4e-3, warmup=100, final=0.02)


def build(tokenizer, seed: int = 0):
    """An untrained `LlamaForCausalLM` of 1 layer x 128."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


@torch.inference_mode()
def write_answers(target, processor, tokenizer, folder: Path, device: str) -> None:
    """The target's answers with its laws, one file per batch; files that exist are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    processor.tokenizer.padding_side = "left"
    schedule = [task for task in TASKS for _ in range(round(100 * MIX[task]))]
    for index in tqdm(range(N_ANSWERS // BATCH), desc="answers", mininterval=5.0):
        path = folder / f"{index:04d}.safetensors"
        if path.exists():
            continue
        task = schedule[(index * 37) % 100]  # one task a batch: little padding
        temperature = TEMPERATURES[index % len(TEMPERATURES)]
        first = ANSWERS_SEED * 1_000_000 + index * BATCH
        items = [example(task, first + i) for i in range(BATCH)]
        texts = [f"USER: <image>\n{item.prompt} ASSISTANT:" for item in items]
        inputs = processor(
            images=[item.image for item in items], text=texts, padding=True, return_tensors="pt"
        ).to(device)
        torch.manual_seed(index)
        output = target.generate(
            **inputs,
            do_sample=temperature > 0,
            **({"temperature": temperature} if temperature > 0 else {}),
            top_k=0,
            max_new_tokens=MAX_NEW_TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
        )
        answers = output.sequences[:, inputs["input_ids"].shape[1] :]
        laws = torch.stack(output.logits, dim=1).float().log_softmax(-1)
        top = laws.topk(N_TOP, dim=-1)
        prompts = [tokenizer.encode(f"USER: {item.prompt} ASSISTANT:") for item in items]
        tensors = {
            "prompts": pad(prompts, tokenizer.pad_token_id),
            "answers": answers.cpu(),
            "top_ids": top.indices.to(torch.int16).cpu(),
            "top_logprobs": top.values.half().cpu(),
        }
        temporary = path.with_suffix(".tmp")
        meta = {"task": task, "temperature": str(temperature)}
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, meta)
        temporary.rename(path)


class Answers:
    """All written answers in memory, as batches of (ids, positions, laws)."""

    def __init__(self, folder: Path, tokenizer):
        self.rows = []
        pad_id, eos_id = tokenizer.pad_token_id, tokenizer.eos_token_id
        for path in sorted(folder.glob("*.safetensors")):
            file = load_file(path)
            for i in range(file["prompts"].shape[0]):
                prompt = [t for t in file["prompts"][i].tolist() if t != pad_id]
                answer = file["answers"][i].tolist()
                if eos_id in answer:
                    answer = answer[: answer.index(eos_id) + 1]
                n = len(answer)
                laws = file["top_ids"][i, :n].long(), file["top_logprobs"][i, :n].float()
                self.rows.append((prompt + answer[:-1], len(prompt) - 1, *laws))
        self.pad_id = pad_id

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(ids [b, t], answer mask [b, t], top ids [n, k], top log-probabilities [n, k])."""
        per_epoch = len(self.rows) // size
        epoch, index = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(epoch)
        order = torch.randperm(len(self.rows), generator=generator).tolist()
        # Batches of like length, from groups of eight batches.
        group = index // 8
        chosen = sorted(
            order[group * 8 * size : (group + 1) * 8 * size], key=lambda i: len(self.rows[i][0])
        )
        start = (index % 8) * size
        rows = [self.rows[i] for i in chosen[start : start + size]]
        ids = pad([row[0] for row in rows], self.pad_id)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for i, row in enumerate(rows):
            mask[i, row[1] : len(row[0])] = True
        return ids, mask, torch.cat([row[2] for row in rows]), torch.cat([row[3] for row in rows])


def law_loss(logits: Tensor, top_ids: Tensor, top_logprobs: Tensor) -> tuple[Tensor, dict]:
    """KL(target || drafter) over the kept tokens plus one bin for all the others, in nats."""
    draft = logits.float().log_softmax(-1)
    kept = draft.gather(-1, top_ids)
    probs = top_logprobs.exp()
    probs = probs / probs.sum(-1, keepdim=True).clamp(min=1.0)  # half precision may exceed 1
    rest = (1 - probs.sum(-1)).clamp(min=1e-6)
    rest_draft = (1 - kept.exp().sum(-1)).clamp(min=1e-6)
    kl = (probs * (probs.clamp(min=1e-9).log() - kept)).sum(-1)
    kl = kl + rest * (rest.log() - rest_draft.log())
    overlap = torch.minimum(probs, kept.exp()).sum(-1).mean()
    agree = (draft.argmax(-1) == top_ids[:, 0]).float().mean()
    return kl.mean(), {"acceptance": overlap.item(), "greedy": agree.item()}


def train_drafter(tokenizer, target_folder, work: Path, out: Path, device: str = "cpu") -> None:
    """Answers, then the drafter; both go on where a killed run stopped."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    target = LlavaForConditionalGeneration.from_pretrained(target_folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(target_folder)
    target.to(device)  # type: ignore[arg-type]  # transformers hides what `Module.to` takes
    write_answers(target.eval(), processor, tokenizer, work / "answers", device)
    del target
    answers = Answers(work / "answers", tokenizer)
    model = build(tokenizer).to(device)

    def loss_of(step):
        batch = answers.batch(step, DRAFTER.batch)
        ids, mask, top_ids, top_logprobs = (tensor.to(device) for tensor in batch)
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        return law_loss(model.lm_head(hidden[mask]), top_ids, top_logprobs)

    train(DRAFTER, model, loss_of, work)
    bf16 = copy.deepcopy(model).to(torch.bfloat16)
    bf16.save_pretrained(out)
    tokenizer.save_pretrained(out)
