from rwkv_engine import ModelConfig
from rwkv_engine.checkpoints.names import to_hugging_face, to_original


def test_the_renaming_of_the_conversion_script():
    assert to_hugging_face("emb.weight") == "rwkv.embeddings.weight"
    assert to_hugging_face("blocks.0.ln0.bias") == "rwkv.blocks.0.pre_ln.bias"
    assert to_hugging_face("blocks.3.att.time_mix_k") == "rwkv.blocks.3.attention.time_mix_key"
    assert to_hugging_face("blocks.3.ffn.time_mix_r") == "rwkv.blocks.3.feed_forward.time_mix_receptance"
    assert to_hugging_face("ln_out.weight") == "rwkv.ln_out.weight"
    assert to_hugging_face("head.weight") == "head.weight"


def test_there_and_back_with_and_without_prefix():
    for name in ModelConfig(11, 8, 8, 32, 9).tensor_shapes():
        renamed = to_hugging_face(name)
        assert to_original(renamed) == to_original(renamed.removeprefix("rwkv.")) == to_original(name) == name
