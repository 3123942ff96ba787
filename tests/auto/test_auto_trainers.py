"""The model in the hands of transformers' Trainer and pipeline, and of PEFT."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from auto_models import SHAPE, difference, folder_of, ours, random_ids

from rwkv_engine import RequestError, StrategyError
from rwkv_engine.auto import AutoTokenizer


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path)


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason="peft is not installed")


# PEFT.


def adapted(peft, mine, **options):
    """A model with LoRA whose update is not zero, as it is at first."""
    options = {"target_modules": ["key", "receptance"], "task_type": "CAUSAL_LM", **options}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = peft.get_peft_model(mine, peft.LoraConfig(r=2, init_lora_weights=False, **options))
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("targets", [["key", "receptance"], ["head", "value"], ["att.output"]], ids=str)
def test_lora_is_trained_saved_and_loaded(targets, peft, folder, tmp_path):
    ids = random_ids(2, 9)
    model = adapted(peft, ours(folder), target_modules=targets).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora_" in name}, "the adapter is trained, and nothing else"
    model.eval().save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(ours(folder), tmp_path / "adapter")
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        assert difference(expected, ours(folder)(ids).logits) > 1e-2
        assert difference(again(input_ids=ids).logits, expected) < 1e-5
    written = model.generate(input_ids=ids, max_new_tokens=8)
    assert torch.equal(again.generate(input_ids=ids, max_new_tokens=8), written)


@pytest.mark.parametrize("targets", [["key"], ["head"]], ids=str)
def test_an_adapter_is_not_lost_when_saving(targets, peft, folder, tmp_path):
    model, ids = adapted(peft, ours(folder), target_modules=targets), random_ids(2, 9)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    with pytest.raises(RequestError, match="merge_and_unload"):
        model.get_base_model().save_pretrained(tmp_path / "out")
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert difference(ours(tmp_path / "out")(ids).logits, expected) < 1e-5


def test_an_adapter_of_a_frozen_model_is_trained(peft, folder):
    """Freezing the model before it gets an adapter is a common recipe."""
    model = adapted(peft, ours(folder).requires_grad_(False))
    ids = random_ids(1, 6)
    model(input_ids=ids, labels=ids).loss.backward()
    trained = [p for name, p in model.named_parameters() if "lora_" in name]
    assert all(p.grad is not None for p in trained)
    base = model.get_base_model()
    assert base.num_parameters(only_trainable=True) == sum(p.numel() for p in trained)


def test_lora_with_gradient_checkpointing(peft, folder):
    ids, gradients = random_ids(1, 6), []
    for enabled in (False, True):
        mine = ours(folder)
        if enabled:
            mine.gradient_checkpointing_enable()
        model = adapted(peft, mine).train()
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append([p.grad for name, p in model.named_parameters() if "lora_" in name])
    for with_all, recomputed in zip(*gradients, strict=True):
        assert torch.equal(with_all, recomputed)


# transformers' Trainer and pipeline.


@pytest.mark.slow
@pytest.mark.parametrize("option", ["gradient_checkpointing", "activation_checkpointing", None])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trainer_trains_saves_and_resumes(option, folder, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    if option and option not in transformers.TrainingArguments.__dataclass_fields__:
        pytest.skip(f"this transformers has no {option}")
    rows = [{"input_ids": row, "labels": row} for row in random_ids(4, 9)]

    def trainer(steps):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "runs"),
            max_steps=steps,
            learning_rate=0.01,
            save_steps=4,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **({option: True} if option else {}),
        )
        return transformers.Trainer(model=ours(folder), args=arguments, train_dataset=rows, eval_dataset=rows)

    first = trainer(4)
    before = first.evaluate()["eval_loss"]
    first.train()
    assert first.evaluate()["eval_loss"] < before
    assert first.model.is_gradient_checkpointing == bool(option)
    first.save_model(str(tmp_path / "saved"))
    ids = random_ids(1, 7)
    with torch.no_grad():
        expected = first.model(ids).logits
        assert difference(ours(tmp_path / "saved")(ids).logits, expected) < 1e-5
    first.model.save_pretrained(tmp_path / "saved")  # adds the config.json that transformers needs
    with torch.no_grad():
        theirs = transformers.RwkvForCausalLM.from_pretrained(tmp_path / "saved", rescale_every=0).eval()
        assert difference(theirs(ids).logits, expected) < 1e-4
    resumed = trainer(8)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8


def test_pipeline_generates_text():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    mine, tokenizer = ours("tales"), AutoTokenizer.from_pretrained("tales")
    pipe = transformers.pipeline("text-generation", model=mine, tokenizer=tokenizer)
    (answer,) = pipe("Once upon a time", max_new_tokens=12, do_sample=False)
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    expected = tokenizer.decode(mine.generate(ids, max_new_tokens=12)[0], skip_special_tokens=True)
    assert answer["generated_text"] == expected


# What they call.


def test_embeddings_are_read_and_replaced(folder):
    mine, ids = ours(folder), random_ids(1, 5)
    assert mine.get_input_embeddings() is mine.core.emb
    assert mine.get_output_embeddings() is mine.core.head
    with torch.no_grad():
        expected = mine(ids).logits
    head = torch.nn.Linear(SHAPE.n_embd, SHAPE.n_vocab, bias=False, dtype=torch.float32)
    embedding = torch.nn.Embedding(SHAPE.n_vocab, SHAPE.n_embd, dtype=torch.float32)
    mine.set_output_embeddings(head)
    mine.set_input_embeddings(embedding)
    assert mine.core.head is mine.head is head
    assert mine.core.emb is mine.emb is embedding
    with torch.no_grad():
        assert difference(mine(ids).logits, expected) > 1e-2
        assert difference(mine.engine.forward(ids)[0], mine(ids).logits[:, -1]) < 1e-5
    for call in (
        lambda: mine.set_output_embeddings(torch.nn.Linear(SHAPE.n_embd, 51, bias=False)),
        lambda: mine.set_output_embeddings(torch.nn.Linear(SHAPE.n_embd, SHAPE.n_vocab)),
        lambda: mine.set_input_embeddings(torch.nn.Embedding(49, SHAPE.n_embd)),
        lambda: mine.set_input_embeddings(None),
        lambda: mine.resize_token_embeddings(51),
    ):
        with pytest.raises(RequestError, match="resized") as raised:
            call()
        assert "\n" not in str(raised.value)
    assert mine.resize_token_embeddings(SHAPE.n_vocab) is mine.emb


def test_inputs_are_prepared_as_a_loop_of_calls_needs_them(folder):
    mine, ids = ours(folder), random_ids(1, 5)
    assert mine.can_generate()
    text, state = ids, None
    for _ in range(4):
        with torch.no_grad():
            output = mine(**mine.prepare_inputs_for_generation(text, state=state, use_cache=True))
        text, state = torch.cat([text, output.logits[:, -1:].argmax(-1)], dim=1), output.state
    assert torch.equal(text, mine.generate(ids, max_new_tokens=4, eos_token_id=None))
    masked = mine.prepare_inputs_for_generation(ids, attention_mask=torch.ones_like(ids))
    assert torch.equal(masked["attention_mask"], torch.ones_like(ids))


def saved_for_backward(call) -> int:
    """How many numbers autograd keeps."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        call()
    return sum(kept)


@pytest.mark.parametrize("every_n_layers", [1, 2])
def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradients(every_n_layers, folder):
    ids = random_ids(2, 40)
    plain, mine = ours(folder).train(), ours(folder).train()
    mine.gradient_checkpointing_enable({"use_reentrant": False}, every_n_layers)
    assert mine.is_gradient_checkpointing
    kept = saved_for_backward(lambda: mine(ids, labels=ids))
    assert kept < saved_for_backward(lambda: plain(ids, labels=ids)) / (3 if every_n_layers == 1 else 1.3)
    state = None
    for model in (plain, mine):
        first = model(ids[:, :20], labels=ids[:, :20], use_cache=True)
        second = model(ids[:, 20:], labels=ids[:, 20:], state=first.state)
        (first.loss + second.loss).backward()
        assert state is None or torch.equal(second.state.wkv_num, state.wkv_num)
        state = second.state
    for (name, p), q in zip(mine.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    for other in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert saved_for_backward(lambda other=other: other(ids, labels=ids)) == kept
        assert torch.equal(other.engine.forward(ids)[0], plain.engine.forward(ids)[0])
        with torch.no_grad():
            other.blocks[0].att.key.weight.zero_()
            assert not torch.equal(other(ids).logits, mine(ids).logits), "a copy runs its own layers"
    mine.gradient_checkpointing_disable()
    assert saved_for_backward(lambda: mine(ids, labels=ids)) == saved_for_backward(lambda: plain(ids, labels=ids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "use_reentrant=True is not supported"),
        ({"offload": True}, "offload=True is not supported"),
        ({"every_n_layers": 0}, "got every_n_layers=0, expected an integer >= 1"),
    ],
    ids=str,
)
def test_gradient_checkpointing_refuses_what_it_cannot_do(options, message, folder):
    with pytest.raises(RequestError, match=message) as raised:
        ours(folder).gradient_checkpointing_enable(**options)
    assert "\n" not in str(raised.value)
    with pytest.raises(StrategyError, match="quantised weights have no gradient"):
        ours(folder, load_in_8bit=True).gradient_checkpointing_enable()


# Classes of transformers.


def test_outputs_and_encodings_are_of_transformers_classes(folder):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    with torch.no_grad():
        output = ours(folder)(random_ids(1, 3))
        base = ours(folder).rwkv(random_ids(1, 3))
    assert isinstance(output, transformers.utils.ModelOutput)
    assert isinstance(base, transformers.utils.ModelOutput)
    encoding = AutoTokenizer.from_pretrained("tales")("Once", return_tensors="pt")
    assert isinstance(encoding, transformers.BatchEncoding)


@pytest.mark.slow
def test_without_transformers_there_are_stand_ins(folder):
    """In a process of its own, in which transformers cannot be imported."""
    code = f"""
import sys
sys.modules["transformers"] = None
import pickle, torch
from rwkv_engine.auto import AutoModelForCausalLM, AutoTokenizer
ids = torch.tensor([[1, 2, 3]])
with torch.no_grad():
    output = AutoModelForCausalLM.from_pretrained({str(folder)!r})(ids, labels=ids)
assert list(output) == ["loss", "logits", "state"]
assert output[0] is output.loss is output["loss"]
assert output[:2] == (output.loss, output.logits)
assert output.hidden_states is None and "hidden_states" not in output
assert torch.equal(pickle.loads(pickle.dumps(output)).logits, output.logits)
encoding = AutoTokenizer.from_pretrained("tales")("Once upon", return_tensors="pt")
assert encoding["input_ids"] is encoding.input_ids
assert encoding.to("cpu") is encoding
assert dict(**encoding).keys() == {{"input_ids", "attention_mask"}}
assert torch.equal(pickle.loads(pickle.dumps(encoding)).input_ids, encoding.input_ids)
try:
    encoding.labels
except AttributeError:
    print("ok")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "ok\n", done.stderr
